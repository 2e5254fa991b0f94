# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads what the experts of a run are worth, as `ablate` measured it."""

from collections.abc import Mapping
import dataclasses
from pathlib import Path

import numpy as np

from moe_peft.runs import records

FILE = 'ablation.json'


@dataclasses.dataclass(frozen=True)
class Ablation:
  """Losses without single experts, in nats per target token.

  Attributes:
    tasks: names, [num_tasks].
    loss: with all experts, <float64>[num_tasks].
    without: <float64>[num_experts, num_tasks] by site.
    step: of the parameters; None in files of before it was kept.
    split: of the rows.
    rows: number of rows by task.
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


def read(run_dir: Path) -> Ablation | None:
  """The file of a run, None where there is none.

  Raises:
    UserError: it is corrupt.
  """
  path = run_dir / FILE
  if not path.is_file():
    return None
  value = records.read_object(path)
  try:
    tasks = tuple(map(str, value['tasks']))
    loss = np.array(value['loss'], np.float64)
    without = {
        str(site['path']): np.array(losses, np.float64).reshape(-1, len(tasks))
        for site, losses in zip(value['sites'], value['without'], strict=True)
    }
    if loss.shape != (len(tasks),):
      raise ValueError('one loss for each task')
    rows = dict(value.get('rows', {}))
  except (TypeError, KeyError, ValueError) as e:
    raise records.malformed(
        path, '"without" must hold a loss for each expert and task of "sites"'
    ) from e
  split = str(value.get('split', ''))
  return Ablation(tasks, loss, without, value.get('step'), split, rows)
