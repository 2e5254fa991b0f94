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


def test_a_run_that_trained_nothing_has_a_row_without_its_speed(tmp_path):
  run = run_folder.write_run(tmp_path / 'run', steps=0)
  (run / 'metrics' / 'train.jsonl').unlink()
  row = run_rows.read(run)
  assert row['steps'] == 0 and 'seconds_per_step' not in row
  records.Records(tmp_path).add_row({'name': 'one', 'seed': 0, **row})
  assert records.Records(tmp_path).rows[0]['adapted'] == row['adapted']
