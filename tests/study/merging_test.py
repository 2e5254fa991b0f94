# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of adding the rows of another results folder."""

import math
import types

from moe_peft.study import merging
from moe_peft.study import records
from tests import refusals

ROW = {'name': 'one', 'seed': 0, 'trainable': 4, 'base': {'t': 1.0},
       'adapted': {'t': 2.0}}


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


def test_machines_that_differ_in_a_trial_or_a_row_are_named(tmp_path):
  here, there = (tmp_path / name for name in ('here', 'there'))
  for folder in (here, there):
    one = records.Records(folder)
    one.add_trial('one', {'ALPHA': '1'}, math.nan, 300, 9)
    one.add_trial('one', {'ALPHA': '2'}, 50.0, 300, 9)
    one.add_row(ROW | {'adapted': {'t': math.nan}})
  ours, theirs = records.Records(here), records.Records(there)
  assert merging.add(ours, there, {'one': ()}) == 0  # The same on both.
  assert len(ours.trials['one']) == 2
  theirs.add_trial('one', {'ALPHA': '4'}, 60.0, 300, 9)
  merging.add(ours, there, {'one': ()})
  assert ours.trial('one', {'ALPHA': '4'}, 300, 9)['validation'] == 60.0
  ours.add_trial('one', {'ALPHA': '8'}, 60.0, 300, 9)
  theirs.add_trial('one', {'ALPHA': '8'}, 61.0, 300, 9)
  before = (here / 'tuning.json').read_text()
  with refusals.refused(there, 'trial of one', 'ALPHA=8', 'seed 9'):
    merging.add(ours, there, {'one': ()})
  assert (here / 'tuning.json').read_text() == before
  # Nobody wants its trials.
  assert merging.add(ours, there, {'two': ()}) == 0


def test_controls_of_one_machine_join_the_row_of_another(tmp_path):
  here, there = (tmp_path / name for name in ('here', 'there'))
  for folder in (here, there):
    records.Records(folder).add_row(dict(ROW))
  name, seed, scores = ROW['name'], ROW['seed'], ROW['adapted']
  theirs = records.Records(there)
  theirs.add_controls(name, seed, {'shuffled': dict(scores)})
  for _ in range(2):  # The second time both have them.
    ours = records.Records(here)
    assert merging.add(ours, there, {name: ()}) == 0
  (row,) = records.Records(here).rows
  assert row['controls'] == {'shuffled': scores}
  theirs.add_controls(name, seed, {'shuffled': dict.fromkeys(scores, 0.5)})
  with refusals.refused(there, f'row of {name}'):
    merging.add(records.Records(here), there, {name: ()})
  theirs.add_controls(name, seed, {'shuffled': {'x': 0.5}})
  with refusals.refused(there / 'results.json', 'controls', 'shuffled'):
    records.Records(there)


def test_seeds_of_other_tuned_values_are_not_merged(tmp_path):
  here, there = (records.Records(tmp_path / name) for name in 'ab')
  here.add_row(ROW | {'tuned': {'ALPHA': '1'}})
  there.add_row(ROW | {'seed': 1, 'tuned': {'ALPHA': '2'}})
  with refusals.refused(tmp_path / 'b', 'one', 'ALPHA=1', 'ALPHA=2'):
    merging.add(here, tmp_path / 'b', {'one': ('ALPHA',)})
  assert len(here.rows) == 1
