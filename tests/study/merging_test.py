# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of adding the rows of another results folder."""

import types

from moe_peft.study import merging
from moe_peft.study import records
from tests import refusals


def _row(name):
  return {
      'name': name, 'seed': 0, 'trainable': 1, 'held_out': [],
      'base': {'t': 1.0}, 'adapted': {'t': 2.0},
  }


def test_rows_lie_in_a_folder_for_each_study_or_in_one(tmp_path):
  inside = tmp_path / 'theirs' / 'first'
  records.Records(inside).add_row(_row('one'))
  records.Records(tmp_path / 'flat').add_row(_row('two'))
  ours = types.SimpleNamespace(
      inside='first', records=records.Records(tmp_path / 'ours'),
      tuned=lambda: {'one': (), 'two': ()},
  )
  for folder in ('theirs', 'flat'):
    merging.merge([ours], tmp_path / folder)
  assert [r['name'] for r in records.Records(tmp_path / 'ours').rows] == [
      'one', 'two'
  ]


def test_a_folder_without_rows_is_refused(tmp_path):
  with refusals.refused(tmp_path, 'no rows'):
    merging.check(tmp_path, ['first'])
