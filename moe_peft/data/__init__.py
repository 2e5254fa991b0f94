# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""SeqIO tasks: words, P3, local files, and what is known about each task."""

from typing import Optional, Sequence


def main(argv: Sequence[str]) -> Optional[int]:
  """Runs `python -m moe_peft.data`; see `command.py`."""
  from moe_peft.data import command

  return command.main(argv)
