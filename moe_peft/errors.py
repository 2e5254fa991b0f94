# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The one error that users are meant to see."""


class UserError(ValueError):
  """Something the user gave is wrong.

  The message is one or two sentences: it names the thing (a path, a gin
  binding, a task) and the remedy. Command lines print it without a stack
  trace and exit with status 2.
  """
