# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`routing_controls.json`: scores of a run whose routers are overruled."""

from collections.abc import Mapping
import dataclasses
from pathlib import Path

from moe_peft.runs import json_file

FILE = 'routing_controls.json'
# Every token has the weights of its router.
TRAINED = 'trained'
# Those of another token of its task.
SHUFFLED = 'shuffled'
# The mean of its task, of all tasks, of another task; equal ones.
TASK_MEAN, MEAN, OTHER_TASK = 'task_mean', 'mean', 'other_task'
UNIFORM = 'uniform'


@dataclasses.dataclass(frozen=True)
class Controls:
  """Scores of a run as it was trained, and with its weights replaced.

  Attributes:
    metrics: The metric of each task.
    scores: By control, `TRAINED` among them, the score of each task.
    step: Step of the parameters.
    split: Split of the rows.
    rows: Number of rows by task.
  """

  metrics: Mapping[str, str]
  scores: Mapping[str, Mapping[str, float]]
  step: int
  split: str
  rows: Mapping[str, int]

  def write(self, folder: Path) -> None:
    json_file.write(folder / FILE, dataclasses.asdict(self))


def read(folder: Path) -> Controls | None:
  """The file of a run; None where there is none.

  Raises:
    errors.UserError: It is damaged.
  """
  if (fields := json_file.read(folder / FILE)) is None:
    return None
  metrics = fields.mapping('metrics', str)
  scores = fields.nested('scores', float)
  for name in (TRAINED, *scores):
    if scores.get(name, {}).keys() != metrics.keys() or not metrics:
      raise fields.error('scores', f'must have each task of "metrics" ({name})')
  return Controls(
      metrics=metrics,
      scores=scores,
      step=fields.get('step', int),
      split=fields.get('split', str),
      rows=fields.mapping('rows', int),
  )
