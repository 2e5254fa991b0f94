# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft.train`: one experiment from base to report."""

import argparse
from collections.abc import Sequence
import sys

from moe_peft import gin_files
from moe_peft.cli import flags

STOPPED = 143  # Exit status of a run that saved and stopped at a signal.

_DESCRIPTION = """\
Fine-tunes a pretrained model with adapters: restores the base, evaluates it,
trains, evaluates again, and writes metrics, checkpoints, a results table and
an HTML report to MODEL_DIR. Run the same command again to continue after an
interruption."""


def main(argv: Sequence[str]) -> int | None:
  """Parses the command line and runs the experiment."""
  parser = argparse.ArgumentParser(
      prog='python -m moe_peft.train',
      description=_DESCRIPTION,
      epilog='example: python -m moe_peft.train '
      '--gin_file=configs/quickstart.gin --gin.TRAIN_STEPS=100',
  )
  flags.add_gin_flags(parser)
  args = parser.parse_args(argv)
  if not args.gin_file:
    parser.error('give at least one --gin_file, e.g. configs/quickstart.gin')
  gin_files.load_gin(
      args.gin_file, args.gin_bindings, args.gin_search_paths
  )
  # JAX and TensorFlow: not for --help.
  from moe_peft.report import page
  from moe_peft.training import run

  folder = run.run_experiment()
  if folder is None:
    return STOPPED
  report = page.write_report([folder], folder / 'report.html')
  print(f'Report: {report}', file=sys.stderr)
  return None


if __name__ == '__main__':
  flags.run(main)
