# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tunes, trains and tabulates the configurations of a study."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import itertools
import sys
import time

from moe_peft import atomic
from moe_peft.runs import run_file
from moe_peft.runs import run_lock
from moe_peft.study import banks
from moe_peft.study import claims as claims_lib
from moe_peft.study import configurations as configurations_lib
from moe_peft.study import controls
from moe_peft.study import loading
from moe_peft.study import merging
from moe_peft.study import outcomes as outcomes_lib
from moe_peft.study import plots
from moe_peft.study import processes
from moe_peft.study import records as records_lib
from moe_peft.study import run_rows
from moe_peft.study import tables
from moe_peft.study import tuning
from moe_peft.study import verdicts

Configuration = configurations_lib.Configuration
StudyRun = configurations_lib.StudyRun
LOCK = 'study.lock'


def run(options: configurations_lib.StudyOptions) -> None:
  """Runs what is not finished, and prints a table for each folder.

  Raises:
    errors.UserError: Before the first run, for anything that the gin files or
      records have wrong, and for records that another process is writing;
      later, for a run that fails.
    processes.Stopped: After a signal.
  """
  loaded = loading.load(options)
  for folder in options.merge:  # A study writes what its macros are.
    merging.check(folder, loaded)
  _studies(loaded, options)  # What is wrong is told before a lock is written.
  with contextlib.ExitStack() as locks:
    for inside in loaded:  # Records are read once, and then written.
      locks.enter_context(run_lock.lock(
          options.results / inside / LOCK, '--results', 'is being written'
      ))
    _run(_studies(loaded, options), options)


def _studies(
    loaded: Mapping[str, Sequence[Configuration]],
    options: configurations_lib.StudyOptions,
) -> list['_Study']:
  return [
      _Study(inside, configurations, options)
      for inside, configurations in loaded.items()
  ]


def _run(
    studies: Sequence['_Study'], options: configurations_lib.StudyOptions
) -> None:
  for folder in options.merge:
    merging.merge(studies, folder)
  for study in studies:
    study.announce()
  try:
    for study in studies:
      for other in studies:
        merging.share(study, other)
      if not options.merge:
        study.run()
      print(study.write_tables())
  finally:
    if not options.only:  # A part of the arms is no basis for a verdict.
      verdicts.write([s.verdict() for s in studies], options.results)


class _Study:
  """The configurations of one folder."""

  def __init__(
      self,
      inside: str,
      configurations: Sequence[Configuration],
      options: configurations_lib.StudyOptions,
  ):
    self.inside = inside
    self.configurations, self._options = configurations, options
    results = options.results / inside
    self.records = records_lib.Records(results)
    self._claim = None
    if not options.only:
      self._claim = claims_lib.read(configurations[0].file.parent)
    for c in configurations:
      macros = c.macros | {'EVAL_SPLIT': options.split}
      records_lib.check_macros(results / 'configs' / f'{c.name}.json', macros)
      records_lib.check_macros(c.folder / 'config.json', macros)

  def _check_claim(self) -> None:
    """Checks the claim against the runs, as soon as there is one."""
    if self._claim and (rows := tables.compared(self.records.rows)):
      claims_lib.check_left_out(self._claim, rows)

  def announce(self) -> None:
    """Says, before anything runs, what its claim could find."""
    self._check_claim()
    if self._claim:
      power = verdicts.power(self._claim, self._seeds())
      print(f'{self.inside or "study"}: {power}', file=sys.stderr, flush=True)

  def tuned(self) -> dict[str, Sequence[str]]:
    """Names of its gin files, with the macros that they tune."""
    return {c.name: tuple(c.trials[0]) for c in self.configurations}

  def run(self) -> None:
    """Tunes, and trains what is not finished."""
    while trials := [
        c.trial(trial)
        for c in self.configurations
        for trial in self._tuner(c).missing()
    ]:
      self._run_all([trials], self._add_trial)
    look = self._claim and self._claim.look
    before = look[0] if look else 0
    self._run_seeds({  # Those that the look is at.
        c.name: sorted(c.seeds)[:before] for c in self.configurations
    })
    self._run_seeds({c.name: c.seeds for c in self._still_open()})
    if self._options.controls:
      controls.measure(self.configurations, self.records, self._options)

  def _run_seeds(self, asked: Mapping[str, Sequence[int]]) -> None:
    """Trains seeds by name, and the experts of their banks."""
    wanted = banks.with_experts(asked, self.configurations)
    rounds = itertools.zip_longest(*(c.seeds for c in self.configurations))
    runs = []
    for seeds in rounds:
      for c, seed in zip(self.configurations, seeds, strict=True):
        if (c.name, seed) not in wanted:
          continue
        best = self._tuner(c).best()
        if not self.records.row(c.name, seed, best):
          runs.append(c.run(seed, best, self._options.split))
          if seed == c.seeds[0] and not c.plan.seeds:
            runs[-1].take_over(c.trial(tuning.Trial(best, None, None)))
    for run in runs:
      run.note_values()
    banks.check(runs)
    self._run_all(banks.stages(runs), self._add_row)

  def _still_open(self) -> list[Configuration]:
    """Configurations that a contrast is still open for, or that have none."""
    if self._claim is None:
      return list(self.configurations)
    ended = outcomes_lib.ended_early(
        self._claim, tables.compared(self.records.rows), self._seeds()
    )
    needed = {
        arm
        for c in self._claim.contrasts if c not in ended
        for arm in (c.first, c.second)
    }
    done = set(self._claim.arms) - needed
    return [c for c in self.configurations if c.name not in done]

  def verdict(self) -> verdicts.Verdict | None:
    """The outcome of its claim; None if it makes none."""
    if self._claim is None:
      return None
    rows = tables.compared(self.records.rows)
    return verdicts.Verdict(
        self.inside or self.configurations[0].file.parent.name,
        self._claim,
        outcomes_lib.judge(self._claim, rows, self._seeds()),
        self._seeds(),
    )

  def write_tables(self) -> str:
    """Writes what the records show, and returns the table of the rows."""
    order = {c.name: number for number, c in enumerate(self.configurations)}
    rows = sorted(
        tables.compared(self.records.rows),
        key=lambda row: order.get(row['name'], len(order)),
    )
    if not rows:
      return ''
    text = tables.table(rows, self._options.reference)
    folder = self.records.folder
    atomic.write(folder / 'table.md', text)
    tuned = [c for c in self.configurations if c.plan.seeds]
    if tuned and not any(self._tuner(c).missing() for c in tuned):
      chosen = tables.tuning({c.name: self._tuner(c) for c in tuned})
      atomic.write(folder / 'tuning.md', chosen)
    if controlled := tables.controls(rows):
      atomic.write(folder / 'controls.md', controlled)
    plots.save(rows, folder / 'plot.png', self._options.reference)
    return text

  def _seeds(self) -> dict[str, Sequence[int]]:
    """The seeds that the files ask for, whatever --seeds runs now."""
    return {c.name: c.declared_seeds for c in self.configurations}

  def _tuner(self, c: Configuration) -> tuning.Tuner:
    return tuning.Tuner(c.name, c.trials, c.plan, self.records)

  def _add_trial(self, run: StudyRun, row: records_lib.Row) -> None:
    seed = run.seed if run.configuration.plan.seeds else None
    self.records.add_trial(
        run.configuration.name, run.values, run_rows.score(row), run.steps,
        seed,
    )

  def _add_row(self, run: StudyRun, row: records_lib.Row) -> None:
    tuned = {'tuned': dict(run.values)} if run.values else {}
    self.records.add_row(
        {'name': run.configuration.name, 'seed': run.seed, **row, **tuned}
    )
    self._check_claim()
    self.write_tables()

  def _run_all(
      self,
      stages: Sequence[Sequence[StudyRun]],
      add: Callable[[StudyRun, records_lib.Row], None],
  ) -> None:
    """Runs what is not finished, stage by stage.

    Args:
      stages: Runs; those of a stage may need banks of what earlier ones train.
      add: Gets what each run has left.
    """
    runs = list(itertools.chain.from_iterable(stages))
    ended = [run for run in runs if run_file.is_finished(run.folder)]
    for run in ended:
      add(run, run_rows.read(run.folder))
    total, count = len(runs) - len(ended), itertools.count(1)
    started = time.monotonic()

    def done(run: StudyRun) -> None:
      add(run, run_rows.read(run.folder))
      number = next(count)
      to_go = (time.monotonic() - started) / number * (total - number)
      print(f'[{number}/{total}, {_hours(to_go)} left] {run.folder}',
            file=sys.stderr, flush=True)

    for stage in stages:
      self._run_stage([run for run in stage if run not in ended], done)

  def _run_stage(
      self, runs: Sequence[StudyRun], done: Callable[[StudyRun], None]
  ) -> None:
    jobs = self._options.jobs
    if build := banks.commands(runs, self._options.trust_gin):
      processes.run_all(
          build, jobs, lambda index: None, 'moe_peft', 'build of the bank'
      )
    processes.run_all(
        [(run.folder, run.arguments(self._options)) for run in runs], jobs,
        lambda index: done(runs[index]),
    )


def _hours(seconds: float) -> str:
  """Hours and minutes, as `2:05`."""
  hours, minutes = divmod(round(seconds / 60), 60)
  return f'{hours}:{minutes:02}'
