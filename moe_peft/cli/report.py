# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft report RUN [RUN ...]`: one HTML page about runs."""

from collections.abc import Sequence
from pathlib import Path

from moe_peft.cli import flags


def main(argv: Sequence[str]) -> int | None:
  """Parses the command line and writes the report of the runs."""
  parser = flags.make_parser(
      'moe_peft report',
      'Writes one self-contained HTML page about 1 to 20 runs: results, '
      'curves, and which task uses which expert.',
      'runs/lora runs/molora --out=comparison.html',
  )
  parser.add_argument(
      'runs', metavar='RUN', nargs='+', type=Path, help='MODEL_DIR of a run'
  )
  parser.add_argument(
      '--out', metavar='FILE', type=flags.output_file('.html'),
      help='HTML file to write (default: report.html in the run, or in the '
      'current directory for several runs)',
  )
  args = parser.parse_args(argv)
  folder = args.runs[0] if len(args.runs) == 1 else Path()
  from moe_peft.report import page  # Importing NumPy would slow --help down.

  print(page.write_report(args.runs, args.out or folder / 'report.html'))
  return None
