# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the figure that stands beside all others."""

import json

import pytest
import seqio

from moe_peft.data import local
from moe_peft.evaluation import constant_answer


def _measure(tmp_path, name, rows, **options):
  path = tmp_path / 'rows.jsonl'
  path.write_text('\n'.join(map(json.dumps, rows)))
  local.register_task(name, validation=str(path), **options)
  task = seqio.TaskRegistry.get(name)
  dataset = task.get_dataset(None, split='validation', shuffle=False)
  return constant_answer.measure(task, dataset.as_numpy_iterator())


def test_text_is_answered_by_the_most_frequent_target(tmp_path):
  rows = [
      {'inputs': f'colour {i}', 'targets': colour}
      for i, colour in enumerate(['red', 'blue', 'red', 'red', 'green'])
  ]
  values = _measure(tmp_path, 'constant_text', rows)
  assert values == {'exact_match': pytest.approx(60.0)}


def test_choices_are_answered_by_the_best_place(tmp_path):
  # The right choice is the second, second, first and third one.
  rows = [
      {'inputs': '?', 'targets': targets, 'options': list(options)}
      for options, targets in (
          ('abc', 'b'), ('def', 'e'), ('gh', 'g'), ('ijk', 'k')
      )
  ]
  values = _measure(
      tmp_path, 'constant_choices', rows, choices_key='options'
  )
  assert values == {'accuracy': pytest.approx(50.0)}
