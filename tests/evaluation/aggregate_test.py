# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""All tasks in one file."""

import json

import seqio

from moe_peft import errors
from moe_peft.evaluation import aggregate


def log(logger, task, step, **values):
  metrics = {k: seqio.metrics.Scalar(v) for k, v in values.items()}
  logger(task, step, metrics, None, None, None)


def test_tasks_means_and_table_of_every_step(tmp_path):
  def table(accuracies):
    if len(accuracies) < 2:
      raise errors.UserError('a task is missing')
    return {'best': max(accuracies.values())}

  logger = aggregate.AggregateLogger(str(tmp_path), table)
  log(logger, 'a', 1, accuracy=20.0, f1=5.0)
  rows = json.loads((tmp_path / 'aggregate.json').read_text())
  assert 'table' not in rows['1']
  log(logger, 'b', 1, accuracy=40.0)
  # What another process wrote before stays.
  log(aggregate.AggregateLogger(str(tmp_path)), 'a', 2, accuracy=30.0)
  assert json.loads((tmp_path / 'aggregate.json').read_text()) == {
      '1': {
          'tasks': {
              'a': {'accuracy': 20.0, 'f1': 5.0},
              'b': {'accuracy': 40.0},
          },
          'mean': {'accuracy': 30.0, 'f1': 5.0},
          'table': {'best': 40.0},
      },
      '2': {'tasks': {'a': {'accuracy': 30.0}}, 'mean': {'accuracy': 30.0}},
  }
