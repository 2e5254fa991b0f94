# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft ablate`: the loss of a run without each expert."""

import argparse
from collections.abc import Sequence
import sys

from moe_peft.cli import flags

# Rows of each task by default.
ROWS = 8


def main(argv: Sequence[str]) -> int | None:
  """Parses the command line and takes away one expert after the other."""
  parser = flags.make_parser(
      'moe_peft ablate',
      'Measures the loss of every task without each expert of each site (the '
      'others take over), on held-out rows. Writes RUN/ablation.json and the '
      'report anew. With --routing it takes no expert away, but what routers '
      'decide: it scores the run with the weights of another token of the same '
      'task in the place of each token\'s own, with the mean weights of its '
      'task, of all tasks and of another task, and with equal ones, and writes '
      'RUN/routing_controls.json.',
      'runs/quickstart --rows=32',
  )
  parser.add_argument('run', metavar='RUN', help='MODEL_DIR of the run')
  parser.add_argument(
      '--routing', action='store_true', help='ablate routing, not experts'
  )
  add_data_flags(parser, ', with --routing EVAL_EXAMPLES')
  flags.add_gin_flags(parser)
  args = parser.parse_args(argv)
  flags.load_run(args)
  from moe_peft.experts import commands
  from moe_peft.report import page

  if args.routing:
    folder = commands.control_routing(args.split, args.rows)
  else:
    folder = commands.ablate(args.split, args.rows or ROWS)
  if (folder / 'run.json').exists():
    page.write_report([folder], folder / 'report.html')
    print(f'Report: {folder / "report.html"}', file=sys.stderr)
  return None


def add_data_flags(parser: argparse.ArgumentParser, beside: str = '') -> None:
  """Adds the flags that choose rows.

  Args:
    parser: The parser.
    beside: What its help says besides the default `ROWS`.
  """
  parser.add_argument(
      '--split', default='validation', help='default: validation'
  )
  parser.add_argument(
      '--rows', type=flags.whole_number(1), metavar='N',
      help=f'rows of each task (default: {ROWS}{beside})',
  )
