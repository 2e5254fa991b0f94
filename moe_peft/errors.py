# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The one error that users are meant to see."""

from collections.abc import Iterator
import contextlib
import re

_MAX_CHARACTERS = 600  # Of each field.


class UserError(ValueError):
  """Something the user gave is wrong.

  Command lines print it in one line, without a stack trace, and exit with
  status 2. Programs and tests read the fields; the wording may change.

  Attributes:
    what: What is wrong, a sentence with the values that are wrong.
    where: The thing that is wrong, as the user wrote it: a gin macro or binding
      (`NUM_EXPERTS`), a flag (`--rows`), a path, a task.
    remedy: What to do about it, a sentence; empty where `what` leaves no
      doubt.
  """

  def __init__(self, what: str, where: object = '', remedy: str = ''):
    super().__init__(what, where, remedy)
    self.what, self.where, self.remedy = what, str(where), remedy

  def __init_subclass__(cls):
    # Gin raises what a configurable raises as a subclass of its own, whose text
    # has a second line. The text stays ours.
    cls.__str__ = UserError.__str__

  def __str__(self) -> str:
    what, where, remedy = map(
        _shortened, (self.what, self.where, self.remedy)
    )
    text = f'{what} {remedy}'.strip()
    # A folder may be called `a`, which is no mention of it in a sentence.
    if where and not re.search(rf'(?<!\w){re.escape(where)}(?!\w)', text):
      text = f'{where}: {text}'
    return re.sub(r'\s*\n\s*', ' ', text)  # What libraries say has lines.


def _shortened(text: str) -> str:
  """Text that somebody can read: values of files may be of any length."""
  if len(text) <= _MAX_CHARACTERS:
    return text
  half = _MAX_CHARACTERS // 2
  return f'{text[:half]} ... {text[-half:]}'


@contextlib.contextmanager
def refused(what: str, where: object, remedy: str = '') -> Iterator[None]:
  """Turns whatever a user's input makes foreign code raise into a UserError.

  Only for code that does nothing but judge the input, such as building a
  network: there a failure is hardly ever ours.

  Args:
    what: What cannot be done, a sentence; what the code said is added.
    where: As in `UserError`.
    remedy: As in `UserError`.

  Raises:
    UserError: The code raised something.
  """
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    said = ' '.join(f'{type(error).__name__}: {error}'.split())
    raise UserError(f'{what} {said[:400]}', where, remedy) from error
