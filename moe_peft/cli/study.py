# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft study`: runs, resumes and tabulates experiments."""

import argparse
from collections.abc import Callable, Sequence
import itertools
from pathlib import Path
import shutil
import sys

from moe_peft import errors
from moe_peft.cli import flags
from moe_peft.study import experiments as experiments_lib
from moe_peft.study import plots
from moe_peft.study import processes
from moe_peft.study import records as records_lib
from moe_peft.study import tables

_DESCRIPTION = """\
Trains every gin file of a folder (or of its subfolders, one study each) with
every seed, scores each run on a split, and writes results.json, table.md (mean
and standard deviation over seeds) and plot.png. Where a file has the macro
TUNE, a grid of values of other macros, it is first run once for each
combination, with its first seed, and scored on the validation split; the best
values are used from then on, and what the best trial has trained is the run of
the first seed, to be scored on the other split. The macro SEEDS has a file's
seeds. What
results.json and tuning.json hold is not run again, and a run that was
interrupted goes on from its checkpoint: run the same command again."""

_STOPPED = 143  # As of a training run that a signal ends.


def main(argv: Sequence[str]) -> int | None:
  """Parses the command line and runs the study.

  Returns:
    Exit status: None at the end, 143 after a signal.
  """
  args = _parser().parse_args(argv)
  if args.jobs < 1:
    raise errors.UserError(f'--jobs={args.jobs}: at least one has to run.')
  args.results = args.results or args.out
  args.seeds = args.seeds and experiments_lib.parse_seeds(args.seeds)
  # All are read before the first one runs.
  studies = [
      _Study(experiments, args.out / inside, args.results / inside, args)
      for inside, experiments in experiments_lib.load(args).items()
  ]
  try:
    for study in studies:
      study.run()
  except processes.Stopped:
    print('Stopped; run the same command to continue.', file=sys.stderr)
    return _STOPPED
  return None


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog='python -m moe_peft study',
      description=_DESCRIPTION,
      epilog='example: python -m moe_peft study configs/study/wide '
      '--out runs/wide --reference lora',
  )
  parser.add_argument('folder', metavar='FOLDER', help='folder of gin files')
  parser.add_argument(
      '--out', type=Path, default=Path('runs/study'), help='where runs lie'
  )
  parser.add_argument(
      '--results', type=Path, metavar='DIR',
      help='where the small files lie, results.json, tuning.json and table.md '
      '(default: --out)',
  )
  parser.add_argument(
      '--seeds',
      help='comma-separated, instead of SEEDS (default: 0,1,2)',
  )
  parser.add_argument('--split', default='test', help='default: test')
  parser.add_argument(
      '--only', action='append', default=[], metavar='NAME',
      help='run only this gin file of the folder; may be repeated',
  )
  parser.add_argument(
      '--tune', action='append', default=[], metavar='NAME=V,V,...',
      help='values of a macro to choose from, instead of TUNE; may be '
      'repeated: all combinations are tried; files without the macro are not '
      'concerned',
  )
  parser.add_argument(
      '--jobs', type=int, default=1, metavar='N',
      help='runs at a time, each on its share of the cores (default: 1)',
  )
  parser.add_argument(
      '--reference', metavar='NAME',
      help='adds columns against this gin file: difference of the mean, in '
      'bold where it exceeds the spread over seeds, time of a step and peak '
      'memory of the process, as ratios',
  )
  flags.add_gin_flags(parser)
  return parser


class _Study:
  """The experiments of one folder."""

  def __init__(
      self,
      experiments: Sequence[experiments_lib.Experiment],
      out: Path,
      results: Path,
      args: argparse.Namespace,
  ):
    self._experiments, self._out, self._args = experiments, out, args
    self._records = records_lib.Records(results)
    for e in experiments:
      config = e.config | {'EVAL_SPLIT': args.split}
      records_lib.check_config(results / 'configs' / f'{e.name}.json', config)
      records_lib.check_config(out / e.name / 'config.json', config)

  def run(self) -> None:
    """Tunes, trains and tabulates what is not finished."""
    records = self._records
    self._run_all(
        [
            experiments_lib.Run(
                e, e.seeds[0], 'validation', values, self._trial(e, values)
            )
            for e in self._experiments
            for values in e.trials
            if len(e.trials) > 1 and not records.trial(e.name, values)
        ],
        lambda run, row: records.add_trial(
            run.experiment.name, run.values, records_lib.score(row)
        ),
    )
    best = {
        e.name: records.best(e.name, e.trials)
        if len(e.trials) > 1 else e.trials[0]
        for e in self._experiments
    }
    for e in self._experiments:
      seed = e.seeds[0]
      if not records.row(e.name, seed, best[e.name]):
        _take_over(
            self._trial(e, best[e.name]), self._seed_run(e, seed), seed
        )
    rounds = itertools.zip_longest(*(e.seeds for e in self._experiments))
    self._run_all(
        [
            experiments_lib.Run(
                e, seed, self._args.split, best[e.name],
                self._seed_run(e, seed),
            )
            for seeds in rounds
            for e, seed in zip(self._experiments, seeds, strict=True)
            if seed is not None
            and not records.row(e.name, seed, best[e.name])
        ],
        self._add_row,
    )
    print(self._write_table())

  def _trial(
      self, experiment: experiments_lib.Experiment, values: records_lib.Values
  ) -> Path:
    return self._out / experiment.name / 'tuning' / tables.text(values)

  def _seed_run(
      self, experiment: experiments_lib.Experiment, seed: int
  ) -> Path:
    return self._out / experiment.name / f'seed{seed}'

  def _add_row(self, run: experiments_lib.Run, row: records_lib.Row) -> None:
    tuned = {'tuned': dict(run.values)} if run.values else {}
    self._records.add_row(
        {'name': run.experiment.name, 'seed': run.seed, **row, **tuned}
    )
    self._write_table()

  def _write_table(self) -> str:
    order = {e.name: number for number, e in enumerate(self._experiments)}
    rows = sorted(
        self._records.rows,
        key=lambda row: order.get(row['name'], len(order)),
    )
    text = tables.table(rows, self._args.reference)
    folder = self._records.folder
    (folder / 'table.md').write_text(text, encoding='utf-8')
    if rows:
      plots.save(rows, folder / 'plot.png', self._args.reference)
    return text

  def _run_all(
      self,
      runs: Sequence[experiments_lib.Run],
      add: Callable[[experiments_lib.Run, records_lib.Row], None],
  ) -> None:
    """Runs what is not finished; `add` gets what each run has left."""
    ended = [run for run in runs if records_lib.is_finished(run.folder)]
    for run in ended:
      add(run, records_lib.read_run(run.folder))
    left = [run for run in runs if run not in ended]
    count = itertools.count(1)

    def done(index: int) -> None:
      run = left[index]
      add(run, records_lib.read_run(run.folder))
      print(f'[{next(count)}/{len(left)}] {run.folder}', file=sys.stderr,
            flush=True)

    processes.run_all(
        [
            (run.folder, run.arguments(self._args, self._out))
            for run in left
        ],
        self._args.jobs,
        done,
    )


def _take_over(trial: Path, run: Path, seed: int) -> None:
  """Begins a run with what a trial of the same values has trained.

  Scores are left behind: they are of another split. Nothing is done if the
  trial is missing or of another seed, as with other `--seeds` than before.
  """
  if run.exists() or records_lib.seed(trial) != seed:
    return
  partial = run.with_suffix('.partial')
  shutil.rmtree(partial, ignore_errors=True)
  for part in ('checkpoints', 'metrics', 'tensorboard'):
    shutil.copytree(
        trial / part,
        partial / part,
        ignore=shutil.ignore_patterns('eval.jsonl'),
    )
  partial.rename(run)
