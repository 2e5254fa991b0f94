# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of what a study keeps, and of records that something has damaged."""

import json
import math
from pathlib import Path

import pytest

from moe_peft.study import records
from moe_peft.study import run_rows
from tests import refusals
from tests import run_folder

ROW = {'name': 'one', 'seed': 0, 'trainable': 4, 'base': {'t': 1.0},
       'adapted': {'t': 2.0}}


def without(name):
  return {key: value for key, value in ROW.items() if key != name}


@pytest.mark.parametrize(
    ('content', 'names'),
    [
        ({}, ['list']),
        ([1], ['rows[0]', 'object']),
        ([ROW, {'name': 'one'}], ['rows[1]', 'seed']),
        ([ROW, without('adapted')], ['rows[1]', 'adapted']),
        ([ROW, ROW | {'adapted': [2.0]}], ['rows[1]', 'adapted']),
        ([ROW | {'base': {'t': 'x'}}], ['rows[0]', 'base', '"t"']),
        ([ROW | {'tuned': 'x'}], ['rows[0]', 'tuned']),
        ([ROW | {'lower_is_better': 3}], ['rows[0]', 'lower_is_better']),
        ([ROW | {'rows': {'t': 'zz'}}], ['rows[0]', '"rows"', 't: ']),
        ([ROW | {'rows': {'t': '1f'}}], ['rows[0]', '"rows"', 't: ', '100']),
        ([ROW | {'rows': {'u': '1f'}}], ['rows[0]', '"rows"', 'u: ']),
        ([ROW, ROW | {'seed': 1, 'adapted': {'u': 2.0}}], ['one', 'seed 1']),
        ([ROW, ROW], ['Two', 'one', 'seed 0']),
    ],
)
def test_a_damaged_row_is_named(content, names, tmp_path):
  path = tmp_path / 'results.json'
  path.write_text(json.dumps(content))
  with refusals.refused(path, *names):
    records.Records(tmp_path)


@pytest.mark.parametrize(
    ('content', 'names'),
    [
        ('{', ['JSON']),
        ('[]', ['object']),
        ('{"one": {}}', ['one', 'list']),
        ('{"one": [[1]]}', ['one[0]', 'object']),
        ('{"one": [{"ALPHA": "1"}]}', ['one[0]', 'validation']),
    ],
)
def test_a_damaged_trial_is_named(content, names, tmp_path):
  path = tmp_path / 'tuning.json'
  path.write_text(content)
  with refusals.refused(path, *names):
    records.Records(tmp_path)


def test_rows_of_earlier_versions_are_read():
  # They have neither `held_out` nor costs.
  rows = records.Records(Path('results/words')).rows
  assert len(rows) == 18 and all(row['held_out'] == [] for row in rows)


def test_less_is_better_where_the_metric_says_so():
  row = ROW | {'held_out': ['u'], 'adapted': {'t': 2.0, 'u': 90.0}}
  assert run_rows.score(row) == 2.0
  assert run_rows.score(row | {'lower_is_better': ['t']}) == -2.0


def test_a_study_of_held_out_tasks_alone_scores_them():
  row = ROW | {'held_out': ['t', 'u'], 'adapted': {'t': 2.0, 'u': 90.0}}
  assert run_rows.score(row) == 46.0


def test_a_score_that_is_no_number_stays_json(tmp_path):
  records.Records(tmp_path).add_row(ROW | {'adapted': {'t': math.nan}})
  assert 'NaN' not in (tmp_path / 'results.json').read_text()
  (row,) = records.Records(tmp_path).rows
  assert math.isnan(row['adapted']['t'])


def test_a_trial_that_is_no_number_is_read_again(tmp_path):
  records.Records(tmp_path).add_trial('one', {'ALPHA': '1'}, math.nan)
  found = records.Records(tmp_path).trial('one', {'ALPHA': '1'})
  assert math.isnan(found['validation'])


def test_machines_that_differ_in_a_trial_or_a_row_are_named(tmp_path):
  here, there = (tmp_path / name for name in ('here', 'there'))
  for folder in (here, there):
    one = records.Records(folder)
    one.add_trial('one', {'ALPHA': '1'}, math.nan, 300, 9)
    one.add_trial('one', {'ALPHA': '2'}, 50.0, 300, 9)
    one.add_row(ROW | {'adapted': {'t': math.nan}})
  ours, theirs = records.Records(here), records.Records(there)
  assert ours.merge(there, {'one': ()}) == 0  # The same on both.
  assert len(ours.trials['one']) == 2
  theirs.add_trial('one', {'ALPHA': '4'}, 60.0, 300, 9)
  ours.merge(there, {'one': ()})
  assert ours.trial('one', {'ALPHA': '4'}, 300, 9)['validation'] == 60.0
  ours.add_trial('one', {'ALPHA': '8'}, 60.0, 300, 9)
  theirs.add_trial('one', {'ALPHA': '8'}, 61.0, 300, 9)
  before = (here / 'tuning.json').read_text()
  with refusals.refused(there, 'trial of one', 'ALPHA=8', 'seed 9'):
    ours.merge(there, {'one': ()})
  assert (here / 'tuning.json').read_text() == before
  assert ours.merge(there, {'two': ()}) == 0  # Whose trials nobody wants.


def test_controls_of_one_machine_join_the_row_of_another(tmp_path):
  here, there = (tmp_path / name for name in ('here', 'there'))
  for folder in (here, there):
    records.Records(folder).add_row(dict(ROW))
  name, seed, scores = ROW['name'], ROW['seed'], ROW['adapted']
  theirs = records.Records(there)
  theirs.add_controls(name, seed, {'shuffled': dict(scores)})
  for _ in range(2):  # The second time both have them.
    ours = records.Records(here)
    assert ours.merge(there, {name: ()}) == 0
  (row,) = records.Records(here).rows
  assert row['controls'] == {'shuffled': scores}
  theirs.add_controls(name, seed, {'shuffled': dict.fromkeys(scores, 0.5)})
  with refusals.refused(there, f'row of {name}'):
    records.Records(here).merge(there, {name: ()})
  theirs.add_controls(name, seed, {'shuffled': {'x': 0.5}})
  with refusals.refused(there / 'results.json', 'controls', 'shuffled'):
    records.Records(there)


def test_seeds_of_other_tuned_values_are_not_merged(tmp_path):
  here, there = (records.Records(tmp_path / name) for name in 'ab')
  here.add_row(ROW | {'tuned': {'ALPHA': '1'}})
  there.add_row(ROW | {'seed': 1, 'tuned': {'ALPHA': '2'}})
  with refusals.refused(tmp_path / 'b', 'one', 'ALPHA=1', 'ALPHA=2'):
    here.merge(tmp_path / 'b', {'one': ('ALPHA',)})
  assert len(here.rows) == 1


def test_a_run_that_trained_nothing_has_a_row_without_its_speed(tmp_path):
  run = run_folder.write_run(tmp_path / 'run', steps=0)
  (run / 'metrics' / 'train.jsonl').unlink()
  row = run_rows.read(run)
  assert row['steps'] == 0 and 'seconds_per_step' not in row
  records.Records(tmp_path).add_row({'name': 'one', 'seed': 0, **row})
  assert records.Records(tmp_path).rows[0]['adapted'] == row['adapted']
