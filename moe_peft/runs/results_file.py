# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`results.json`: every metric of every task before and after training."""

from collections.abc import Mapping
import dataclasses
import math
from pathlib import Path

from moe_peft.runs import json_file
from moe_peft.runs import row_scores

FILE = 'results.json'
# {task: {metric: value}}.
Values = Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Score:
  """One metric of one task before and after; NaN where not measured."""

  task: str
  metric: str
  base: float
  adapted: float
  primary: bool


@dataclasses.dataclass(frozen=True)
class Results:
  """An evaluation of a run and of its bare base.

  Attributes:
    split: The split that was evaluated.
    num_examples: Evaluated rows by task.
    base: Values of the bare base.
    adapted: Values of the base with its trained adapters.
    primary_metric: The metric of each task that tables show.
    constant_answer: Values of always giving the best constant answer, where
      they were measured.
    questions_cut: Percent of the questions that are longer than the model
      reads, by task: those that are left out, and those that are cut.
    lower_is_better: Metrics of which a lower value is the better one.
    rows: Which rows were right by the primary metric, with adapters, see
      row_scores.py; only where each was right or wrong, none in older files.
  """

  split: str
  num_examples: Mapping[str, int]
  base: Values
  adapted: Values
  primary_metric: Mapping[str, str]
  constant_answer: Values = dataclasses.field(default_factory=dict)
  questions_cut: Values = dataclasses.field(default_factory=dict)
  lower_is_better: tuple[str, ...] = ('loss',)
  rows: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def scores(self) -> dict[tuple[str, str], Score]:
    """Scores by task and metric, the primary metric of a task first."""
    scores = {}
    for task, values in self.adapted.items():
      first = self.primary_metric.get(task, next(iter(values), None))
      for metric in sorted(values, key=lambda metric: metric != first):
        base = self.base.get(task, {}).get(metric, math.nan)
        scores[task, metric] = Score(
            task, metric, base, values[metric], metric == first
        )
    return scores

  def constant(self, task: str) -> float:
    """The best constant answer in the primary metric; NaN if not measured."""
    values = self.constant_answer.get(task, {})
    return values.get(self.primary_metric.get(task), math.nan)

  def write(self, folder: Path, name: str = FILE) -> None:
    json_file.write(folder / name, {
        'split': self.split,
        'num_examples': self.num_examples,
        'questions_cut': self.questions_cut,
        'tasks': {
            task: {
                metric: {'base': self.base[task][metric], 'adapted': value}
                for metric, value in values.items()
            }
            for task, values in self.adapted.items()
        },
        'primary_metric': self.primary_metric,
        'constant_answer': self.constant_answer,
        'lower_is_better': self.lower_is_better,
        **({'rows': self.rows} if self.rows else {}),
    }, indent=2)


def read(folder: Path, name: str = FILE) -> Results | None:
  """The results of a run; None where there are none.

  Raises:
    errors.UserError: The file is damaged.
  """
  if (fields := json_file.read(folder / name)) is None:
    return None
  tasks = fields.nested('tasks', dict)
  column = lambda column: {
      task: {
          metric: json_file.number(pair.get(column))
          for metric, pair in metrics.items()
      }
      for task, metrics in tasks.items()
  }
  adapted = column('adapted')
  primary = fields.mapping('primary_metric', str)
  scores = {
      task: values.get(primary.get(task), math.nan)
      for task, values in adapted.items()
  }
  return Results(
      split=fields.get('split', str, ''),
      num_examples=fields.mapping('num_examples', int),
      base=column('base'),
      adapted=adapted,
      primary_metric=primary,
      constant_answer=fields.nested('constant_answer', float),
      questions_cut=fields.nested('questions_cut', float),
      # Version 1 does not say it; its only such metric is the loss.
      lower_is_better=fields.texts('lower_is_better')
      if 'lower_is_better' in fields.value else ('loss',),
      rows=row_scores.read(fields, scores),
  )


def read_base(path: Path, of: str) -> dict[str, dict[str, float]] | None:
  """Results of a bare base by task.

  Args:
    path: The file.
    of: Digest of all that the results depend on.

  Returns:
    None where there are none, or those of something else.
  """
  fields = json_file.read(path)
  if fields is None or fields.value.get('of') != of:
    return None
  return fields.nested('tasks', float)


def write_base(path: Path, of: str, values: Values) -> None:
  """Writes results of a bare base for the runs that share it."""
  json_file.write(path, {'of': of, 'tasks': values})
