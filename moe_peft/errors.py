# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The one error that users are meant to see."""


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

  def __str__(self) -> str:
    text = f'{self.what} {self.remedy}'.strip()
    if self.where and self.where not in text:
      return f'{self.where}: {text}'
    return text
