# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft.study`."""

from moe_peft import command_line
from moe_peft import study

if __name__ == '__main__':
  command_line.run(study.main)
