# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What lengths cut from questions is told where it is much."""

from moe_peft.evaluation import coverage


def test_only_tasks_that_lose_much_are_named():
  cut = {
      'piqa': {'left_out': 20.0, 'inputs_cut': 0.0},
      'boolq': {'left_out': 5.0, 'inputs_cut': 90.4},
      'arc': {'left_out': 1.0, 'inputs_cut': 2.0},
  }
  text = coverage.warning(cut, 'test', {'inputs': 64, 'targets': 32})
  for words in ('piqa (20 %', 'boolq (90 %', 'TASK_FEATURE_LENGTHS', 'test'):
    assert words in text
  assert 'arc' not in text and 'boolq (5' not in text


def test_nothing_is_said_where_little_is_cut():
  cut = {'arc': {'left_out': 1.0, 'inputs_cut': 2.0}}
  assert coverage.warning(cut, 'test', {'inputs': 64, 'targets': 32}) == ''
