# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares methods: runs that differ in the seed only are one line."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
import re
import statistics

from moe_peft.evaluation import spread
from moe_peft.report import scores as scores_lib
from moe_peft.runs import config_file
from moe_peft.runs import run as run_lib

# Macros in which the seeds of one group differ.
_OF_A_SEED = ('SEED', 'MODEL_DIR')
# Macros that do not change what is trained, or that have a column of their own.
_NOT_SETTINGS = re.compile(
    r'SEEDS?|TUNE|MODEL_DIR|BASE_RESULTS_DIR|PARAM_BUDGET|BUDGET_MACRO|'
    r'.*_PARTITIONS|EVAL_.*|.*_PERIOD'
)
_REFERENCES = ('lora', 'LoRA')
_SETTING_LENGTH = 24


@dataclasses.dataclass(frozen=True)
class Cell:
  """The score of a method.

  Attributes:
    mean: Over seeds; NaN where no run has it.
    deviation: Standard deviation over seeds, NaN of one.
    mark: ▲ or ▼ where it is significantly better or worse than the reference.
  """

  mean: float
  deviation: float = math.nan
  mark: str = ''


@dataclasses.dataclass(frozen=True)
class Group:
  """Runs that differ in nothing but the seed.

  Attributes:
    name: The folder above the seeds, or the method.
    runs: The runs.
    macros: Name -> text of gin's macros.
  """

  name: str
  runs: tuple[run_lib.Run, ...]
  macros: Mapping[str, str]

  def means(self, columns: Iterable[scores_lib.Column]) -> list[float]:
    """Mean over columns of every run that has all of them."""
    values = [scores_lib.mean(run, columns) for run in self.runs]
    return [value for value in values if math.isfinite(value)]

  def step_seconds(self) -> float:
    """Median over the logged periods, so that compilation does not count."""
    return _median(
        1 / statistics.median(run.train['steps_per_second'].values)
        for run in self.runs if 'steps_per_second' in run.train
    )

  def memory(self) -> float:
    """Peak memory in bytes, median over the runs."""
    values = [run.info.peak_memory_bytes for run in self.runs]
    return _median(value for value in values if value)

  def settings(self, groups: Sequence['Group']) -> list[tuple[str, str]]:
    """Macros whose values differ between the methods that have them."""
    return [
        (name, value)
        for name, value in self.macros.items()
        if not _NOT_SETTINGS.fullmatch(name)
        and len({g.macros[name] for g in groups if name in g.macros}) > 1
        and len(value) <= _SETTING_LENGTH  # Paths of sites say little here.
    ]


def _median(values: Iterable[float]) -> float:
  values = list(values)
  return statistics.median(values) if values else math.nan


def group(runs: Sequence[run_lib.Run]) -> list[Group]:
  """Puts runs with the same configuration but the seed together.

  Runs without a configuration stay alone.
  """
  members: dict[object, list[run_lib.Run]] = {}
  macros: dict[object, dict[str, str]] = {}
  for run in runs:
    bound = config_file.bindings(run.config, run.path / config_file.FILE)
    key = tuple(x for x in sorted(bound.items()) if x[0] not in _OF_A_SEED)
    key = key or str(run.path)
    members.setdefault(key, []).append(run)
    macros.setdefault(key, config_file.macros(bound))
  names = [_name(of_key) for of_key in members.values()]
  return [
      Group(
          name if names.count(name) == 1 else f'{name} ({of_key[0].name})',
          tuple(of_key),
          macros[key],
      )
      for name, (key, of_key) in zip(names, members.items(), strict=True)
  ]


def _name(runs: Sequence[run_lib.Run]) -> str:
  folders = {run.path.absolute().parent.name for run in runs}
  seeds = all(re.fullmatch(r'seed_?\d+', run.path.name) for run in runs)
  if seeds and len(folders) == 1:
    return folders.pop()
  return runs[0].name if len(runs) == 1 else scores_lib.method(runs[0])


class Comparison:
  """The table of methods.

  Attributes:
    groups: The methods.
    reference: The one with which the others are compared: LoRA if it is there.
    columns: Tasks and primary metrics; whether a lower value is better.
    means: What is averaged under which heading.
  """

  def __init__(self, runs: Sequence[run_lib.Run]):
    self._runs, self.groups = runs, group(runs)
    self.reference = next(
        (g for g in self.groups
         if {g.name, scores_lib.method(g.runs[0])} & set(_REFERENCES)),
        self.groups[0],
    )
    self.columns = scores_lib.columns(runs)
    self.means = scores_lib.means(runs)

  def _heads(self) -> list[list[scores_lib.Column]]:
    return [*self.means.values(), *([column] for column in self.columns)]

  def cells(self, this: Group) -> list[Cell]:
    """Means over tasks, then the score of each task."""
    return [
        _cell(
            this.means(head), self.reference.means(head),
            all(self.columns[column] for column in head),
        )
        for head in self._heads()
    ]

  def baseline(self, name: str) -> list[float] | None:
    """The same means of the 'base' or the 'constant' answer, or None."""
    value = lambda run, task, metric: (
        run.results.constant(task) if name == 'constant'
        else run.scores[task, metric].base
    )
    known = {
        column: value(run, *column)
        for run in self._runs for column in scores_lib.columns([run])
        if math.isfinite(value(run, *column))
    }
    if not known:
      return None
    return [
        statistics.fmean(known.get(column, math.nan) for column in head)
        for head in self._heads()
    ]


def _cell(
    values: Sequence[float], reference: Sequence[float], lower: bool
) -> Cell:
  if not values:
    return Cell(math.nan)
  mean, mark = statistics.fmean(values), ''
  if spread.differ(values, reference):
    mark = '▲' if (mean > statistics.fmean(reference)) != lower else '▼'
  several = len(values) > 1
  return Cell(mean, spread.deviation(values) if several else math.nan, mark)
