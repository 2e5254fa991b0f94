# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft.train`: one experiment from base to report."""

from collections.abc import Sequence
import sys

from moe_peft import signals
from moe_peft.cli import flags

_DESCRIPTION = """\
Fine-tunes a pretrained model with adapters: restores the base, evaluates it,
trains, evaluates again, and writes metrics, checkpoints, a results table and
an HTML report to MODEL_DIR. Run the same command again to continue after an
interruption."""


def main(argv: Sequence[str]) -> int | None:
  """Parses the command line and runs the experiment.

  Returns:
    Exit status: None at the end, 130 after Ctrl-C, 143 after SIGTERM or SIGHUP.
  """
  parser = flags.make_parser(
      'moe_peft.train',
      _DESCRIPTION,
      '--gin_file=configs/quickstart.gin --gin.TRAIN_STEPS=100',
  )
  flags.add_gin_flags(parser)
  args = parser.parse_args(argv)
  flags.show_notes()
  flags.load_gin(args)
  # Importing JAX and TensorFlow would slow --help down.
  from moe_peft.report import page
  from moe_peft.training import run

  folder = run.run_experiment()
  if folder is None:
    return signals.noted_status()
  report = page.write_report([folder], folder / 'report.html')
  print(f'Report: {report}', file=sys.stderr)
  return None


if __name__ == '__main__':
  flags.run(main)
