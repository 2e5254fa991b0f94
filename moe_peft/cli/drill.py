# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft drill`: small runs are killed, and must lose nothing."""

from collections.abc import Sequence
from pathlib import Path
import tempfile

from moe_peft import gin_files
from moe_peft.cli import flags

_DESCRIPTION = """\
Kills a small run at random moments (start-up, evaluation, step, save, restore),
damages its checkpoints, fills its disk, takes away its permissions, starts it
twice, moves the clock, and compares what it leaves behind with a run that was
let alone, bit for bit: parameters, optimizer state, logs, TensorBoard's points,
results. Writes trials.jsonl and table.md, and ends with status 1 if anything
was lost. The same command continues where it was stopped."""


def main(argv: Sequence[str]) -> int:
  """Parses the command line and runs the trials.

  Returns:
    Exit status: 1 if something was lost.
  """
  parser = flags.make_parser('moe_peft drill', _DESCRIPTION, '--trials=8')
  parser.add_argument(
      '--trials', type=flags.whole_number(1), default=20, metavar='N',
      help='kills; each takes some 15 seconds (default: 20)',
  )
  parser.add_argument(
      '--seed', type=flags.whole_number(0), default=0, metavar='N',
      help='decides what happens in them (default: 0)',
  )
  parser.add_argument(
      '--out', type=flags.output_folder, default=Path('runs/drill'),
      metavar='DIR',
      help='folder of the records (default: runs/drill)',
  )
  parser.add_argument(
      '--work', type=flags.output_folder, metavar='DIR',
      help='folder in which the runs lie, to try its disk; what was lost stays '
      'there (default: a temporary one)',
  )
  parser.add_argument(
      '--t5x', action='store_true',
      help='kill t5x.train instead, alone and as one of two processes',
  )
  parser.add_argument(
      '--soak', type=flags.positive_number, metavar='MINUTES',
      help='instead of killing it, train for so long; memory, open files and '
      'threads must not grow',
  )
  args = parser.parse_args(argv)
  gin_files.import_tensorflow()  # Not for --help; it would log.
  from moe_peft.drill import soak
  from moe_peft.drill import t5x_runs
  from moe_peft.drill import trials

  with tempfile.TemporaryDirectory() as temporary:
    work = (args.work or Path(temporary)).expanduser().absolute()
    work.mkdir(parents=True, exist_ok=True)
    if args.soak:
      nothing_lost = soak.run(args.soak, args.out, work)
    else:
      drill = t5x_runs if args.t5x else trials
      nothing_lost = drill.run(args.trials, args.seed, args.out, work)
  return 0 if nothing_lost else 1
