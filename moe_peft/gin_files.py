# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds and parses gin files; mistakes in them are one clear error."""

import ast
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import functools
import importlib
import importlib.util  # noqa: F401  (gin relies on somebody's import)
import io
import logging
import os
from pathlib import Path
import re
import sys
from typing import Any

from moe_peft import errors
from moe_peft import gin_names
from moe_peft import gin_places
from moe_peft import gin_suggestions
from moe_peft import gin_trust
from moe_peft import gin_values

PACKAGE_DIR = Path(__file__).resolve().parent
# In a wheel `gin/` and `configs/` lie inside the package, in a checkout
# beside it.
RESOURCE_DIRS = (PACKAGE_DIR, PACKAGE_DIR.parent)
# The arguments of the last `load_gin`.
_loaded: dict[str, Any] = {}


def resource(name: str) -> Path:
  """Path of a file or folder that ships with the package.

  Args:
    name: Relative path such as `configs/quickstart.gin`.

  Raises:
    errors.UserError: If there is no such file.
  """
  for folder in RESOURCE_DIRS:
    if (folder / name).exists():
      return folder / name
  raise errors.UserError(
      f'{name} does not ship with moe_peft.',
      where=name,
      remedy=gin_suggestions.nearest(name, _shipped_gin()),
  )


def load_gin(
    gin_files: Sequence[str],
    bindings: Sequence[str] = (),
    search_paths: str = '',
    trust: bool = False,
    defaults: Mapping[str, Any] | None = None,
) -> None:
  """Parses gin files, then bindings, and locks the configuration.

  Gin files are code, and whoever gives them trusts them; but a `config.gin` is
  what a run has written, whosoever that was, and may only name the parts of
  experiments (`gin_trust`). One of version 0.1 is read in the names of today.

  Args:
    gin_files: Paths, or names found in the search paths or in the package.
    bindings: `NAME=VALUE`; a value that gin cannot read, such as a bare path,
      is taken as a string.
    search_paths: Comma-separated folders.
    trust: Whether a `config.gin` is code like any other gin file.
    defaults: Values of macros, before the bindings, where files use them.

  Raises:
    errors.UserError: For a file, binding or macro that does not exist, for a
      macro that must be given and was not, for a value that is not allowed, and
      for a `config.gin` that names anything else than the parts of experiments.
  """
  import gin

  _loaded.clear()
  _loaded.update(
      gin_files=gin_files, bindings=bindings, search_paths=search_paths,
      trust=trust, defaults=defaults,
  )
  import_tensorflow()
  gin.clear_config()
  folders = [p for p in search_paths.split(',') if p]
  folders += [str(folder) for folder in RESOURCE_DIRS]
  # Files of packages are looked for as well: T5X includes its own so. Gin's way
  # to them fails at folders on Python's path that are no packages.
  gin.config._LOCATION_PREFIXES[:] = [
      os.getcwd(), *folders, *filter(None, sys.path)
  ]
  files = [_find(name, folders) for name in gin_files]
  for file in files:
    _parse_file(file, trust)
  known = macros()
  for name, value in (defaults or {}).items():
    if name in known:
      gin.parse_config(f'{name} = {value!r}')
  flags = [_parse_flag(binding, known) for binding in bindings]
  check_macros()
  gin_values.check_config(functools.partial(
      gin_places.place, files, flags, lambda name: _located(name, folders)
  ))
  with _gin_errors():
    gin.finalize()


def _parse_file(file: str, trust: bool) -> None:
  import gin

  with _gin_errors(file):
    if Path(file).name == gin_trust.FILE:
      gin.parse_config(_config_of_run(file, trust))
    else:
      gin.parse_config_file(file)


def _parse_flag(binding: str, known: Sequence[str]) -> str:
  """Parses `NAME=VALUE`, and returns it as gin source."""
  import gin

  name, _, value = map(str.strip, binding.partition('='))
  if '.' not in name and name not in known:
    now = gin_names.MACROS.get(name)
    raise errors.UserError(
        f'No gin file uses the macro {name}.',
        where=f'--gin.{name}',
        remedy=f'It is called {now}.' if now
        else gin_suggestions.nearest(name.upper(), known),
    )
  source = f'{name} = {_quoted(value)}'
  with _gin_errors(f'--gin.{binding}'):
    gin.parse_config(source)
  return source


def _config_of_run(file: str, trust: bool) -> io.StringIO:
  """The text of a `config.gin`, in the names of today, checked."""
  text = gin_names.rename_decoder(Path(file).read_text(encoding='utf-8'))
  if gin_names.is_old(text):
    text = gin_names.upgrade(text)
  if not trust:
    gin_trust.check(text, file)
  # Gin parses what has been checked, and names the file in its messages.
  stream = io.StringIO(text)
  stream.name = file
  return stream


def load_again(*bindings: str) -> None:
  """Parses what `load_gin` has parsed last, with more bindings after its own.

  A configuration that is locked is never changed; it is made anew.

  Args:
    *bindings: `NAME=VALUE`.

  Raises:
    errors.UserError: As `load_gin`.
  """
  load_gin(**_loaded | {'bindings': [*_loaded['bindings'], *bindings]})


def import_tensorflow() -> None:
  """Imports TensorFlow without the notes that its libraries print."""
  # It only reads data here: that it finds no GPU is no error, and one that it
  # finds is JAX's, whose memory it would take.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  with silent_stderr(), contextlib.suppress(RuntimeError):  # It runs already.
    importlib.import_module('tensorflow').config.set_visible_devices([], 'GPU')


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
  """Hides what libraries that are not Python write to standard error."""
  sys.stderr.flush()
  stderr = os.dup(2)
  with open(os.devnull, 'w') as nothing:
    os.dup2(nothing.fileno(), 2)
  try:
    yield
  finally:
    os.dup2(stderr, 2)
    os.close(stderr)


def check_macros() -> None:
  """Checks that no macro of the parsed configuration lacks its value.

  Raises:
    errors.UserError: For a macro that is used and never set, and for macros
      that must be given and were not.
  """
  import gin

  known = macros()
  for reference in gin.config.iterate_references(gin.config._CONFIG):
    name, _, kind = reference.scoped_selector.rpartition('/')
    if kind == 'gin.macro' and name not in known:
      near = gin_suggestions.nearest(name, known)
      raise errors.UserError(
          f'The macro {name} is used but never set.',
          where=name,
          remedy=f'{near} Include the gin file that provides it, or add '
          f'--gin.{name}=...'.strip(),
      )
  missing = macros(required=True)
  if missing:
    flags = ' '.join(f'--gin.{name}=...' for name in missing)
    raise errors.UserError(
        f'Values are missing: {", ".join(missing)}.',
        where=missing[0],
        remedy=f'Add {flags}',
    )


@contextlib.contextmanager
def _gin_errors(where: str = '') -> Iterator[None]:
  """Turns gin's exceptions into user errors; they name file and line."""
  # Gin logs an error for every search path that lacks the file.
  logging.disable(logging.ERROR)
  try:
    yield
  except errors.UserError:
    raise
  except Exception as error:  # Gin lets through whatever an import raises.
    raise explained(error, where) from error
  finally:
    logging.disable(logging.NOTSET)


def explained(error: Exception, where: str = '') -> errors.UserError:
  """What gin raised about files and bindings, as a user's error.

  Args:
    error: What it raised.
    where: As in `errors.UserError`.
  """
  if isinstance(error, RecursionError):
    return errors.UserError(
        'It includes itself, or a value is nested too deeply.', where
    )
  spec = getattr(sys.modules['__main__'], '__spec__', None)
  # Gin looks for it where a file has `import __main__`, as those of T5X have.
  if isinstance(error, KeyError) and spec and error.args == (spec.name,):
    return errors.UserError(
        'It is a gin file of T5X.', where, 'Run it with python -m t5x.train.'
    )
  # Gin shows the line and points at the place, and quotes a flag as a file.
  message = re.sub(r'\n  In bindings string.*', '', str(error), flags=re.S)
  message = re.sub(r'malformed node or string[^>]*>\s*', '', message)
  message = re.sub(r'Searched config paths: .*?\]\.', '', message)
  message = message.rstrip(' ^\n')
  return gin_names.renamed(message) or errors.UserError(
      message,
      where=where,
      remedy=gin_suggestions.for_message(message, _shipped_gin()),
  )


def macros(required: bool = False) -> list[str]:
  """Names of gin's macros that are set (or, if `required`, must still be)."""
  import gin

  return [
      name
      for (name, selector), arguments in gin.config._CONFIG.items()
      if selector == 'gin.macro'
      and (not required or str(arguments.get('value')) == '%gin.REQUIRED')
  ]


def macro(name: str) -> Any:
  """The value of a macro, with all that it refers to made.

  Args:
    name: One of `macros()`.
  """
  import gin

  with gin.config_scope(name):
    return gin.get_configurable(gin.config.macro)()


def _quoted(value: str) -> str:
  """The value as gin source: strings need no quotes on the command line."""
  value = value.strip()
  try:
    ast.literal_eval(value)
    return value
  except (SyntaxError, ValueError, MemoryError, RecursionError):
    # References, alone or in a structure, are gin's to judge. In the middle of
    # other text, as in the path /x/50%, the signs mean nothing.
    is_reference = re.match(r'([\[({](.*[\[({,:\s])?)?[@%]\w', value, re.DOTALL)
    return value if is_reference else repr(value)


def _located(name: str, folders: Sequence[str]) -> str | None:
  for candidate in (Path(name), *(Path(folder) / name for folder in folders)):
    if candidate.is_file():
      return str(candidate)
  return None


def _find(name: str, folders: Sequence[str]) -> str:
  if (found := _located(name, folders)) is not None:
    return found
  what = 'is a folder' if Path(name).is_dir() else 'does not exist'
  raise errors.UserError(
      f'The gin file {name} {what}.',
      where=name,
      remedy=gin_suggestions.nearest(name, _shipped_gin()),
  )


def _shipped_gin() -> list[str]:
  return sorted(
      str(path.relative_to(folder))
      for folder in RESOURCE_DIRS
      for kind in ('gin', 'configs')
      if (folder / kind).is_dir()
      for path in (folder / kind).rglob('*.gin')
  )
