# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft.train`: one experiment from base to report."""

import argparse
from typing import Optional, Sequence

from moe_peft import command_line

_DESCRIPTION = """\
Fine-tunes a pretrained model with adapters: restores the base, evaluates it,
trains, evaluates again, and writes metrics, checkpoints, a results table and
an HTML report to MODEL_DIR. Run the same command again to continue after an
interruption."""


def main(argv: Sequence[str]) -> Optional[int]:
  """Parses the command line and runs the experiment."""
  parser = argparse.ArgumentParser(
      prog='python -m moe_peft.train',
      description=_DESCRIPTION,
      epilog='example: python -m moe_peft.train '
      '--gin_file=configs/quickstart.gin --gin.TRAIN_STEPS=100',
  )
  command_line.add_gin_flags(parser)
  args = parser.parse_args(argv)
  if not args.gin_file:
    parser.error('give at least one --gin_file, e.g. configs/quickstart.gin')
  command_line.load_gin(
      args.gin_file, args.gin_bindings, args.gin_search_paths
  )
  from moe_peft.training import run  # JAX and TensorFlow: not for --help.

  return run.run_experiment()


if __name__ == '__main__':
  command_line.run(main)
