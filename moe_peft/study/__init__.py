# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Studies: folders of experiments that are run, resumed and tabulated."""

from typing import Optional, Sequence


def main(argv: Sequence[str]) -> Optional[int]:
  """Runs `python -m moe_peft.study`; see `command.py`."""
  from moe_peft.study import command

  return command.main(argv)
