# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reading run directories: whole, interrupted, and corrupt ones."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from moe_peft import errors
from moe_peft.runs import run as run_lib


def test_reads_everything(run_dir):
  run = run_lib.read(run_dir)
  assert run.notices == ()
  assert run.info['num_params_trainable'] == 50_000
  np.testing.assert_array_equal(run.train['loss'].steps, np.arange(1, 41))
  assert run.train['loss'].values[19] == pytest.approx(2 * math.exp(-1))
  curve = run.evaluation['stress', 'exact_match']
  np.testing.assert_array_equal(curve.values, [0, 20, 40])
  first = run.scores[0]
  assert (first.metric, first.base, first.adapted, first.primary) == (
      'exact_match', 12.25, 61.75, True
  )
  assert [s.primary for s in run.scores] == [True, False] * 3
  assert run.routing.sites[3].path == 'encoder/layers_1/mlp/wo'
  np.testing.assert_allclose(
      run.routing.sites[3].load, np.tile([0.5, 0.25, 0.25, 0], (3, 1))
  )
  np.testing.assert_allclose(run.routing.sites[3].entropy, [0.75] * 3)


def test_half_written_last_line_is_skipped_and_told(run_dir):
  path = run_dir / 'metrics' / 'train.jsonl'
  text = path.read_text()
  path.write_text(text[:-25])
  run = run_lib.read(run_dir)
  assert run.train['loss'].steps[-1] == 39
  assert any('line 40' in notice for notice in run.notices)


def test_only_half_a_line(run_dir):
  (run_dir / 'metrics' / 'train.jsonl').write_text('{"step": 1, "lo')
  run = run_lib.read(run_dir)
  assert run.train == {}
  assert any('line 1' in notice for notice in run.notices)


def test_resumed_run_repeats_steps(run_dir):
  path = run_dir / 'metrics' / 'train.jsonl'
  with open(path, 'a') as f:
    f.write('{"step": 40, "lo{"step": 38, "loss": 1.0}\n')
    f.write('{"step": 39, "loss": 7.0}\n{"step": 41, "loss": 8.0}\n')
  curve = run_lib.read(run_dir).train['loss']
  np.testing.assert_array_equal(curve.steps, np.arange(1, 42))
  np.testing.assert_array_equal(curve.values[[38, 40]], [7, 8])


def test_nan_null_and_infinity_are_read_and_told(run_dir):
  with open(run_dir / 'metrics' / 'train.jsonl', 'a') as f:
    f.write('{"step": 41, "loss": NaN}\n{"step": 42, "loss": null}\n')
    f.write('{"step": 43, "loss": Infinity}\n')
  run = run_lib.read(run_dir)
  assert np.isfinite(run.train['loss'].values).sum() == 40
  assert any(
      'loss is not a finite number at 3 of 43' in n and 'step 41' in n
      for n in run.notices
  )


def test_unrouted_unfinished_run(run_dir):
  for name in ('routing.json', 'results.json', 'config.gin'):
    (run_dir / name).unlink()
  run = run_lib.read(run_dir)
  assert run.routing is None and run.scores == () and run.config == ''
  assert any('results.json' in notice for notice in run.notices)


def test_missing_directory(tmp_path):
  with pytest.raises(errors.UserError, match='not a directory'):
    run_lib.read(tmp_path / 'absent')


def test_directory_of_something_else(tmp_path):
  with pytest.raises(errors.UserError, match='neither run.json nor metrics'):
    run_lib.read(tmp_path)


def test_killed_run_has_no_run_json(run_dir):
  (run_dir / 'run.json').unlink()
  run = run_lib.read(run_dir)
  assert run.info == {} and len(run.train['loss'].steps) == 40
  assert any('run.json' in notice for notice in run.notices)


@pytest.mark.parametrize(
    'name', ['run.json', 'results.json', 'routing.json']
)
@pytest.mark.parametrize('text', ['{"tasks": ', '[1]', ''])
def test_corrupt_json_names_the_file(run_dir, name, text):
  (run_dir / name).write_text(text)
  with pytest.raises(errors.UserError, match=name):
    run_lib.read(run_dir)


def test_metrics_without_any_readable_line(run_dir):
  (run_dir / 'metrics' / 'eval.jsonl').write_text('a,b\n1,2\n')
  with pytest.raises(errors.UserError, match='eval.jsonl, line 1'):
    run_lib.read(run_dir)


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda r: r.pop('tasks'), '"tasks" and "sites"'),
        (lambda r: r['load'].pop(), '"load" must hold one entry'),
        (lambda r: r['load'][1].pop(), 'site 7'),
        (lambda r: r['sites'][2].pop('stack'), 'site 2'),
        (lambda r: r['load'][0][0].pop(), 'shape \\[3, 4\\]'),
        (lambda r: r['entropy'].pop(), '"entropy" must be numbers'),
        (lambda r: r['load'][0].__setitem__(0, ['x'] * 4), '"load" of'),
        (lambda r: r['load'][0].__setitem__(0, [-1, 1, 1, 0]), 'negative'),
    ],
)
def test_malformed_routing(run_dir, change, message):
  path = run_dir / 'routing.json'
  value = json.loads(path.read_text())
  change(value)
  path.write_text(json.dumps(value))
  with pytest.raises(errors.UserError, match=message):
    run_lib.read(run_dir)


@pytest.mark.parametrize(
    'tasks', [None, {'qa': 3}, {'qa': {'accuracy': 3}}]
)
def test_malformed_results(run_dir, tasks):
  (run_dir / 'results.json').write_text(json.dumps({'tasks': tasks}))
  with pytest.raises(errors.UserError, match='results.json is malformed'):
    run_lib.read(run_dir)


def test_names_are_short_and_unique():
  paths = [Path('/x/a/seed0'), Path('/x/b/seed0'), Path('/x/b/seed0')]
  assert run_lib.unique_names(paths) == ['a/seed0', 'b/seed0', 'b/seed0 (2)']
  assert run_lib.unique_names([Path('/x/a'), Path('/x/b')]) == ['a', 'b']


def test_no_runs():
  with pytest.raises(errors.UserError, match='at least one'):
    run_lib.read_all([])
