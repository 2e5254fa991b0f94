# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft prune`: a run with fewer experts."""

from collections.abc import Sequence

from moe_peft.cli import ablate
from moe_peft.cli import flags


def main(argv: Sequence[str]) -> int | None:
  """Parses the command line and writes the pruned run."""
  parser = flags.make_parser(
      'moe_peft prune',
      'Keeps at each site the experts whose removal costs most (scores of '
      'RUN/ablation.json, measured anew unless they are of the newest '
      'checkpoint and of the same rows), writes OUT, a run that the other '
      'commands read, and prints the loss of every task before and after. The '
      'weights of the experts that stay sum to one again where they did '
      'before.',
      'runs/quickstart --keep=2 --out=runs/quickstart_2',
  )
  parser.add_argument('run', metavar='RUN', help='MODEL_DIR of the run')
  parser.add_argument(
      '--keep', type=flags.whole_number(1), required=True, metavar='N',
      help='experts that stay at each site',
  )
  parser.add_argument(
      '--out', type=flags.output_folder, required=True, metavar='DIR',
      help='folder to write',
  )
  ablate.add_data_flags(parser)
  flags.add_force_flag(parser)
  flags.add_gin_flags(parser)
  args = parser.parse_args(argv)
  flags.load_run(args)
  from moe_peft.experts import commands

  return commands.prune(
      args.keep, args.out, args.split, args.rows or ablate.ROWS, args.force
  )
