# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Shows what is the user's error in one line: gin files import this.

T5X's scripts leave what ends them to Python, which prints the whole trace.
"""

import sys
from typing import Any

import gin

from moe_peft import errors
from moe_peft import gin_files


def show(kind: type, error: BaseException, trace: Any) -> None:
  """Prints an error, as `sys.excepthook` does.

  Args:
    kind: Its class.
    error: The error. Before gin is locked, it is about gin files and flags.
    trace: Its trace, which Python shows where the error is nobody's fault.
  """
  said = error if isinstance(error, errors.UserError) else None
  if said is None and issubclass(kind, Exception):
    said = None if gin.config_is_locked() else gin_files.explained(error)
  if said is not None:
    print(f'error: {said}', file=sys.stderr)
  else:
    sys.__excepthook__(kind, error, trace)


sys.excepthook = show
