# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft.save_base`: a run's parameters as a base for others."""

import argparse
from pathlib import Path
from typing import Optional, Sequence

from moe_peft import command_line


def main(argv: Sequence[str]) -> Optional[int]:
  """Parses the command line and writes the base."""
  parser = argparse.ArgumentParser(
      prog='python -m moe_peft.save_base',
      description='Writes the newest parameters of a run without its adapters, '
      'in bfloat16, as OUT/model.safetensors; OUT then serves as '
      'INITIAL_CHECKPOINT_PATH.',
  )
  parser.add_argument('run', metavar='RUN', help='MODEL_DIR of the run')
  parser.add_argument('out', metavar='OUT', type=Path, help='folder to write')
  command_line.add_gin_flags(parser)
  args = parser.parse_args(argv)
  command_line.load_run(args)
  from moe_peft.training import restored

  return restored.save_base(args.out)


if __name__ == '__main__':
  command_line.run(main)
