# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft report RUN [RUN ...]`: one HTML page about runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
  """Writes the report of the runs named on the command line.

  Args:
    argv: arguments without the program's name; None reads the command line.

  Returns:
    The exit status.

  Raises:
    UserError: a run cannot be read or the page cannot be written.
  """
  parser = argparse.ArgumentParser(
      prog='python -m moe_peft report',
      description='Writes one self-contained HTML page about 1 to 20 runs:'
      ' results, curves, and which task uses which expert.',
  )
  parser.add_argument(
      'runs', metavar='RUN', nargs='+', type=Path, help='MODEL_DIR of a run'
  )
  parser.add_argument(
      '--out', metavar='FILE', type=Path,
      help='HTML file to write (default: report.html in the run, or in the'
      ' current directory for several runs)',
  )
  args = parser.parse_args(argv)
  out = args.out
  if out is None:
    out = args.runs[0] if len(args.runs) == 1 else Path()
    out = out / 'report.html'
  from moe_peft.report import page  # numpy is slow, --help must be fast

  print(page.write_report(args.runs, out))
  return 0
