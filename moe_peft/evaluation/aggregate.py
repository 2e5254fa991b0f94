# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""One file with the results of all tasks, beside SeqIO's file for each."""

import collections
from collections.abc import Callable, Mapping
import json
from pathlib import PurePath
import statistics
from typing import Any

import seqio
import tensorflow as tf

from moe_peft import errors

FILE = 'aggregate.json'
Table = Callable[[Mapping[str, float]], Mapping[str, float]]


class AggregateLogger(seqio.Logger):
  """Writes `aggregate.json`: by step, each task, the means, and a table.

  For `seqio.Evaluator.logger_cls`, under T5X too. The mean of a metric is over
  the tasks that have it.
  """

  def __init__(self, output_dir: str, table: Table | None = None):
    """Makes a logger.

    Args:
      output_dir: Where the file lies; steps that are in it stay.
      table: Summary of a benchmark, from the accuracies by task, such as
        `p3.held_out_table`. It is left out while it raises a UserError, as it
        does for lack of tasks.
    """
    super().__init__(output_dir)
    self._file = str(PurePath(output_dir) / FILE)
    self._table = table
    self._steps: dict[str, dict[str, Any]] = {}
    if tf.io.gfile.exists(self._file):
      with tf.io.gfile.GFile(self._file) as stream:
        self._steps = json.load(stream)

  def __call__(
      self,
      task_name: str,
      step: int | None,
      metrics: Mapping[str, Any],
      dataset: Any,
      inferences: Any,
      targets: Any,
  ) -> None:
    """Adds a task; called by the evaluator, task by task."""
    del dataset, inferences, targets
    row = self._steps.setdefault(str(step), {'tasks': {}})
    row['tasks'][task_name] = {
        name: float(metric.value)
        for name, metric in metrics.items()
        if isinstance(metric, seqio.metrics.Scalar)
    }
    row['mean'] = _means(row['tasks'])
    if table := self._benchmark(row['tasks']):
      row['table'] = table
    part = f'{self._file}.part'
    with tf.io.gfile.GFile(part, 'w') as stream:
      stream.write(json.dumps(self._steps, indent=2) + '\n')
    tf.io.gfile.rename(part, self._file, overwrite=True)

  def _benchmark(self, tasks) -> dict[str, float] | None:
    if self._table is None:
      return None
    try:
      return dict(
          self._table({
              task: values['accuracy']
              for task, values in tasks.items()
              if 'accuracy' in values
          })
      )
    except errors.UserError:
      return None


def _means(tasks: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
  values = collections.defaultdict(list)
  for metrics in tasks.values():
    for name, value in metrics.items():
      values[name].append(value)
  return {name: statistics.fmean(found) for name, found in values.items()}
