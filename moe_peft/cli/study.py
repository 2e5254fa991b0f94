# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft study`: runs, resumes and tabulates experiments."""

import argparse
from collections.abc import Sequence
from pathlib import Path
import sys

from moe_peft import errors
from moe_peft import gin_files
from moe_peft import signals
from moe_peft.cli import flags

_DESCRIPTION = """\
Trains every gin file of a folder (or of its subfolders, one study each) with
every seed, scores each run on a split, and writes results.json, table.md (mean
and standard deviation over seeds) and plot.png. Where a file has the macro
TUNE, a grid of values of other macros, it is first run once for each
combination, with its first seed, and scored on the validation split; the best
values are used from then on, and what the best trial has trained is the run of
the first seed, to be scored on the other split. The macro SEEDS has a file's
seeds. With TUNING_SEEDS the grid is tried with seeds that the table does not
count, in the rounds of RUNGS. A folder with claim.gin gets a table of what its
claim has come to. What results.json and tuning.json hold is not run again, and
a run that was interrupted goes on from its checkpoint: run the same command
again."""


def main(argv: Sequence[str]) -> int | None:
  """Parses the command line and runs the study.

  Returns:
    Exit status: None at the end, 130 after Ctrl-C, 143 after SIGTERM or SIGHUP.
  """
  args = _parser().parse_args(argv)
  args.results = args.results or args.out
  names = [name for name, _ in args.tune]
  if twice := [name for name in names if names.count(name) > 1]:
    raise errors.UserError(f'{twice[0]} is given twice.', '--tune')
  args.tune = dict(args.tune)
  gin_files.import_tensorflow()  # Not for --help; it would log.
  from moe_peft.study import configurations
  from moe_peft.study import processes
  from moe_peft.study import study

  try:
    study.run(configurations.StudyOptions(**vars(args)))
  except processes.Stopped as stopped:
    print('Stopped; run the same command to continue.', file=sys.stderr)
    return signals.status(stopped.number)
  return None


def _parser() -> argparse.ArgumentParser:
  parser = flags.make_parser(
      'moe_peft study',
      _DESCRIPTION,
      'configs/study/wide --out=runs/wide --reference=lora',
  )
  parser.add_argument('folder', metavar='FOLDER', help='folder of gin files')
  parser.add_argument(
      '--out', type=flags.output_folder, default=Path('runs/study'),
      metavar='DIR',
      help='where runs lie (default: runs/study)',
  )
  parser.add_argument(
      '--results', type=flags.output_folder, metavar='DIR',
      help='where the small files lie, results.json, tuning.json and table.md '
      '(default: --out)',
  )
  parser.add_argument(
      '--seeds', type=_seeds, metavar='N,N,...',
      help='seeds of all files, instead of their SEEDS (default: 0,1,2)',
  )
  parser.add_argument('--split', default='test', help='default: test')
  parser.add_argument(
      '--only', action='append', default=[], metavar='NAME',
      help='run only this gin file of the folder; may be repeated',
  )
  parser.add_argument(
      '--tune', action='append', type=_grid, default=[],
      metavar='NAME=V,V,...',
      help='values of a macro to choose from, instead of TUNE; may be '
      'repeated: all combinations are tried; files without the macro are not '
      'concerned',
  )
  parser.add_argument(
      '--jobs', type=flags.whole_number(1), default=1, metavar='N',
      help='runs at a time, each on its share of the cores (default: 1)',
  )
  parser.add_argument(
      '--controls', action='store_true',
      help='also scores what routers decide: every run again with its routing '
      'replaced, as `ablate --routing` does, and writes controls.md',
  )
  parser.add_argument(
      '--reference', metavar='NAME',
      help='adds columns against this gin file: difference of the mean, in '
      'bold where it is significantly different (Welch, p < 0.05), time of a '
      'step and peak memory of the process, as ratios',
  )
  parser.add_argument(
      '--merge', action='append', type=Path, default=[], metavar='DIR',
      help='adds the rows of this --results folder of another machine, and '
      'writes the tables; nothing runs; may be repeated',
  )
  flags.add_gin_flags(parser)
  return parser


def _seeds(text: str) -> list[int]:
  seeds = [flags.whole_number(0)(seed) for seed in text.split(',')]
  if len(set(seeds)) < len(seeds):
    raise argparse.ArgumentTypeError(f'{text} has a seed twice')
  return seeds


def _grid(text: str) -> tuple[str, list[str]]:
  name, _, values = text.partition('=')
  values = [value for value in values.split(',') if value]
  if not name or not values:
    raise argparse.ArgumentTypeError(
        f'{text} has no values; write it as LEARNING_RATE=1e-3,3e-3'
    )
  return name, values
