# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft.data`."""

from moe_peft import command_line
from moe_peft import data

if __name__ == '__main__':
  command_line.run(data.main)
