# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tunes, trains and tabulates the configurations of a study."""

from collections.abc import Callable, Sequence
import itertools
import shutil
import sys

from moe_peft import atomic
from moe_peft.runs import run_file
from moe_peft.study import configurations as configurations_lib
from moe_peft.study import plots
from moe_peft.study import processes
from moe_peft.study import records as records_lib
from moe_peft.study import tables

Configuration = configurations_lib.Configuration
StudyRun = configurations_lib.StudyRun


def run(options: configurations_lib.StudyOptions) -> None:
  """Runs what is not finished, and prints a table for each folder.

  Raises:
    errors.UserError: Before the first run, for anything that the gin files or
      records have wrong; later, for a run that fails.
    processes.Stopped: After a signal.
  """
  studies = [
      _Study(inside, configurations, options)
      for inside, configurations in configurations_lib.load(options).items()
  ]
  for study in studies:
    study.run()


class _Study:
  """The configurations of one folder."""

  def __init__(
      self,
      inside: str,
      configurations: Sequence[Configuration],
      options: configurations_lib.StudyOptions,
  ):
    self._configurations, self._options = configurations, options
    results = options.results / inside
    self._records = records_lib.Records(results)
    for c in configurations:
      macros = c.macros | {'EVAL_SPLIT': options.split}
      records_lib.check_macros(results / 'configs' / f'{c.name}.json', macros)
      records_lib.check_macros(c.folder / 'config.json', macros)

  def run(self) -> None:
    """Tunes, trains and tabulates what is not finished."""
    records = self._records
    self._run_all(
        [
            c.trial(values)
            for c in self._configurations
            for values in c.trials
            if len(c.trials) > 1 and not records.trial(c.name, values)
        ],
        lambda run, row: records.add_trial(
            run.configuration.name, run.values, records_lib.score(row)
        ),
    )
    runs = []
    for seeds in itertools.zip_longest(
        *(c.seeds for c in self._configurations)
    ):
      for c, seed in zip(self._configurations, seeds, strict=True):
        best = records.best(c.name, c.trials)
        if seed is not None and not records.row(c.name, seed, best):
          runs.append(c.run(seed, best, self._options.split))
          if seed == c.seeds[0]:
            take_over(c.trial(best), runs[-1])
    self._run_all(runs, self._add_row)
    print(self._write_table())

  def _add_row(self, run: StudyRun, row: records_lib.Row) -> None:
    tuned = {'tuned': dict(run.values)} if run.values else {}
    self._records.add_row(
        {'name': run.configuration.name, 'seed': run.seed, **row, **tuned}
    )
    self._write_table()

  def _write_table(self) -> str:
    order = {c.name: number for number, c in enumerate(self._configurations)}
    rows = sorted(
        self._records.rows,
        key=lambda row: order.get(row['name'], len(order)),
    )
    text = tables.table(rows, self._options.reference)
    folder = self._records.folder
    atomic.write(folder / 'table.md', text)
    if rows:
      plots.save(rows, folder / 'plot.png', self._options.reference)
    return text

  def _run_all(
      self,
      runs: Sequence[StudyRun],
      add: Callable[[StudyRun, records_lib.Row], None],
  ) -> None:
    """Runs what is not finished; `add` gets what each run has left."""
    ended = [run for run in runs if run_file.is_finished(run.folder)]
    for run in ended:
      add(run, records_lib.read_run(run.folder))
    left = [run for run in runs if run not in ended]
    count = itertools.count(1)

    def done(index: int) -> None:
      folder = left[index].folder
      add(left[index], records_lib.read_run(folder))
      print(f'[{next(count)}/{len(left)}] {folder}', file=sys.stderr,
            flush=True)

    processes.run_all(
        [(run.folder, run.arguments(self._options)) for run in left],
        self._options.jobs,
        done,
    )


def take_over(trial: StudyRun, run: StudyRun) -> None:
  """Begins a run with what a trial of the same values has trained.

  Scores are left behind: they are of another split. Nothing is done if the
  trial is missing or of another seed, as with other `--seeds` than before.
  """
  if run.folder.exists() or records_lib.seed(trial.folder) != run.seed:
    return
  partial = run.folder.with_suffix('.partial')
  shutil.rmtree(partial, ignore_errors=True)
  for part in ('checkpoints', 'metrics', 'tensorboard'):
    shutil.copytree(
        trial.folder / part,
        partial / part,
        ignore=shutil.ignore_patterns('eval.jsonl'),
    )
  partial.rename(run.folder)
