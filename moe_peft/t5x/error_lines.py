# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Shows what is the user's error in one line: gin files import this.

T5X's scripts leave what ends them to Python, which prints the whole trace.
"""

from pathlib import Path
import sys
import traceback
from typing import Any

from absl import flags
import gin

from moe_peft import errors
from moe_peft import gin_files
from moe_peft import gin_trust

_previous = sys.excepthook


def show(kind: type, error: BaseException, trace: Any) -> None:
  """Prints an error, as `sys.excepthook` does.

  Args:
    kind: Its class.
    error: The error. Until gin is locked, what gin itself raises is about gin
      files and flags.
    trace: Its trace, which is shown where the error is of other code.
  """
  if isinstance(error, errors.UserError):
    # Gin raises it again, and keeps the first one as the context.
    cause = error.__cause__ or getattr(error.__context__, '__cause__', None)
    if cause and _is_users(cause.__traceback__):
      _previous(type(cause), cause, cause.__traceback__)
    print(f'error: {error}', file=sys.stderr)
  elif (
      isinstance(error, Exception)
      and not gin.config_is_locked()
      and _raised_in(trace)[0] == 'gin'
  ):
    said = gin_files.explained(error, _flag(error))
    print(f'error: {said}', file=sys.stderr)
  else:
    _previous(kind, error, trace)


def _flag(error: Exception) -> str:
  """The flag that gin cannot read, which has but the number of its line."""
  known = 'gin_bindings' in flags.FLAGS
  given = flags.FLAGS['gin_bindings'].value if known else []
  line = getattr(error, 'lineno', None) or 0
  if getattr(error, 'filename', None) or not 0 < line <= len(given):
    return ''
  return f'--gin.{given[line - 1]}'.strip()


def _raised_in(trace: Any) -> tuple[str, str]:
  """Package and file of what raised, which Python's own modules never are."""
  for frame, _ in reversed(list(traceback.walk_tb(trace))):
    package = frame.f_globals.get('__name__', '').partition('.')[0]
    if package not in sys.stdlib_module_names:
      return package, frame.f_code.co_filename
  return '', ''


def _is_users(trace: Any) -> bool:
  """Whether the code that raised is neither ours nor that of a library."""
  package, file = _raised_in(trace)
  libraries = {'site-packages', 'dist-packages'}.intersection(Path(file).parts)
  return bool(file) and package not in gin_trust.PACKAGES and not libraries


# Whoever else imports this, a test or a notebook, keeps its own.
_spec = getattr(sys.modules['__main__'], '__spec__', None)
if _spec is not None and _spec.name.startswith('t5x.'):
  sys.excepthook = show
