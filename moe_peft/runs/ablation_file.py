# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`ablation.json`: losses without single experts, as `ablate` measures them."""

from collections.abc import Mapping
import dataclasses
from pathlib import Path

import numpy as np

from moe_peft.runs import json_file
from moe_peft.runs import site_names

FILE = 'ablation.json'


@dataclasses.dataclass(frozen=True)
class Ablation:
  """Losses without single experts, in nats per target token.

  Attributes:
    tasks: Names, [num_tasks].
    loss: Loss with all experts, <float64>[num_tasks].
    without: <float64>[num_experts, num_tasks] by site.
    step: Step of the parameters; None in older files.
    split: Split of the rows.
    rows: Number of rows by task.
  """

  tasks: tuple[str, ...]
  loss: np.ndarray
  without: Mapping[str, np.ndarray]
  step: int | None
  split: str
  rows: Mapping[str, int]

  def scores(self) -> dict[str, np.ndarray]:
    """What each expert is worth, the rise of the loss without it.

    Returns:
      <float64>[num_experts] by site, mean over tasks.
    """
    return {
        site: (losses - self.loss).mean(axis=1)
        for site, losses in self.without.items()
    }

  def is_of(self, step: int, split: str, rows: Mapping[str, int]) -> bool:
    """Whether it was measured at this step and on these rows."""
    return (self.step, self.split, self.rows) == (step, split, rows)

  def write(self, folder: Path) -> None:
    json_file.write(folder / FILE, {
        'tasks': self.tasks,
        'sites': [
            site_names.describe(site, len(losses))
            for site, losses in self.without.items()
        ],
        'loss': self.loss,
        'without': list(self.without.values()),
        'step': self.step,
        'split': self.split,
        'rows': self.rows,
    })


def read(folder: Path) -> Ablation | None:
  """The file of a run; None where there is none.

  Raises:
    errors.UserError: It is damaged.
  """
  if (fields := json_file.read(folder / FILE)) is None:
    return None
  tasks = fields.texts('tasks')
  return Ablation(
      tasks=tasks,
      loss=fields.numbers('loss', [len(tasks)]),
      without=fields.by_site('without', lambda n: (n, len(tasks))),
      step=fields.get('step', int, None),
      split=fields.get('split', str, ''),
      rows=fields.mapping('rows', int),
  )
