# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""CLU writers of scalars: JSON lines, TensorBoard, the line of progress."""

from collections.abc import Mapping
from typing import Any

from clu import metric_writers
import numpy as np

from moe_peft.runs import metrics_files
from moe_peft.training import progress as progress_lib

# What the line of progress shows besides the loss and the speed.
_SHOWN = {
    'rewards/margins': 'reward margin',
    'rewards/accuracies': 'accuracy',
    'router_entropy': 'router entropy',
}


class RowWriter(metric_writers.MultiWriter):
  """Writes scalars to a `.jsonl` file; without parts, it ignores the rest."""

  def __init__(self, rows: metrics_files.JsonLines):
    super().__init__([])
    self._rows = rows

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    self._rows.write({'step': step, **scalars})

  def close(self) -> None:
    self._rows.close()


class BoardWriter(metric_writers.SummaryWriter):
  """Writes scalars for TensorBoard.

  TensorFlow keeps a tensor for every Python number that it has met, forever; it
  frees those of arrays.
  """

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    arrays = {name: np.asarray(value) for name, value in scalars.items()}
    super().write_scalars(np.asarray(step), arrays)


class ProgressWriter(metric_writers.MultiWriter):
  """Shows a few scalars in the progress line; it ignores the rest."""

  def __init__(self, progress: progress_lib.Progress):
    super().__init__([])
    self._progress = progress

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    shown = [f'loss {scalars["loss"]:.3f}']
    shown += [
        f'{title} {scalars[name]:.3f}'
        for name, title in _SHOWN.items()
        if name in scalars
    ]
    shown.append(f'{scalars["tokens_per_second"]:,.0f} tokens/s')
    self._progress.update(step, '  '.join(shown))

  def close(self) -> None:
    self._progress.close()
