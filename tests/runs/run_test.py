# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reading run directories: whole, interrupted, and corrupt ones."""

import json
import math
from pathlib import Path
import zipfile

import numpy as np
import pytest

from moe_peft.runs import config_file
from moe_peft.runs import metrics_files
from moe_peft.runs import run as run_lib
from moe_peft.runs import run_file
from tests import refusals

SITE = 'encoder/layers_0/attention/query'


def test_reads_everything(run_dir):
  run = run_lib.read(run_dir)
  assert run.notices == ()
  assert run.info.num_params_trainable == 50_000 and run.info.version == 1
  np.testing.assert_array_equal(run.train['loss'].steps, np.arange(1, 41))
  assert run.train['loss'].values[19] == pytest.approx(2 * math.exp(-1))
  curve = run.evaluation['stress', 'exact_match']
  np.testing.assert_array_equal(curve.values, [0, 20, 40])
  first, *_ = run.scores.values()
  assert (first.metric, first.base, first.adapted, first.primary) == (
      'exact_match', 12.25, 61.75, True
  )
  assert [s.primary for s in run.scores.values()] == [True, False] * 3
  assert run.usage.sites[3].path == 'encoder/layers_1/mlp/wo'
  np.testing.assert_allclose(
      run.usage.sites[3].load, np.tile([0.5, 0.25, 0.25, 0], (3, 1))
  )
  np.testing.assert_allclose(run.usage.sites[3].entropy, [0.75] * 3)
  np.testing.assert_array_equal(run.router_log.steps, [20, 40])
  np.testing.assert_allclose(run.router_log.load[SITE],
                             [[0.3, 0.3, 0.3, 0.1]] * 2)
  np.testing.assert_allclose(run.router_log.left_behind[SITE], 0.125)
  np.testing.assert_allclose(run.ablation.scores()[SITE], [0, 0.25, 0, 0])
  assert run.controls.scores['task_mean']['stress'] == 51.25
  assert run.similarity.cosine[SITE][0, 1] == 0.5
  assert run.snapshots.steps == (0, 20, 40)
  assert run.snapshots.rows[0].pieces['encoder'] == ('a', 'b', '⟨end⟩')


def test_a_log_that_began_with_experts_that_a_layer_does_not_have(run_dir):
  path = run_dir / 'metrics' / 'routers.jsonl'
  first, last = map(json.loads, path.read_text().splitlines())
  for site in first['sites'].values():
    site['load'] += [0.0, 0.0]
  path.write_text(f'{json.dumps(first)}\n{json.dumps(last)}\n')
  assert run_lib.read(run_dir).router_log.load[SITE].shape == (2, 4)


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
  for name in ('run.json', 'routing.json', 'results.json', 'config.gin'):
    (run_dir / name).unlink()
  run = run_lib.read(run_dir)
  assert run.info == run_file.RunInfo() and len(run.train['loss'].steps) == 40
  assert run.usage is None and run.scores == {} and run.config == ''
  for name in ('run.json', 'results.json'):
    assert any(name in notice for notice in run.notices)


def test_a_run_without_its_optional_files(run_dir):
  for name in ('similarity.json', 'ablation.json', 'routing_controls.json',
               'metrics/routers.jsonl'):
    (run_dir / name).unlink()
  for file in (run_dir / 'routing').iterdir():
    file.unlink()
  value = json.loads((run_dir / 'routing.json').read_text())
  del value['chance'], value['left_behind']
  (run_dir / 'routing.json').write_text(json.dumps(value))
  run = run_lib.read(run_dir)
  assert (run.similarity, run.ablation, run.router_log, run.snapshots) == (
      None,
  ) * 4
  assert run.controls is None
  assert math.isnan(run.usage.sites[0].chance)
  assert not run.usage.sites[0].left_behind.any()


def test_missing_directory(tmp_path):
  with refusals.refused(tmp_path / 'absent', 'MODEL_DIR'):
    run_lib.read(tmp_path / 'absent')


def test_directory_of_something_else(tmp_path):
  with refusals.refused(tmp_path, 'run.json', 'metrics/'):
    run_lib.read(tmp_path)


@pytest.mark.parametrize(
    'name',
    ['run.json', 'results.json', 'routing.json', 'ablation.json',
     'routing_controls.json', 'similarity.json', 'routing/rows.json'],
)
@pytest.mark.parametrize('text', ['{"tasks": ', '[1]', ''])
def test_corrupt_json_names_the_file(run_dir, name, text):
  (run_dir / name).write_text(text)
  with refusals.refused(run_dir / name):
    run_lib.read(run_dir)


def test_metrics_without_any_readable_line(run_dir):
  path = run_dir / 'metrics' / 'eval.jsonl'
  path.write_text('a,b\n1,2\n')
  with refusals.refused(path, 'Line 1 '):
    run_lib.read(run_dir)


@pytest.mark.parametrize(
    'name, text, field',
    [
        ('similarity.json', '{"sites": [{"path": "a"}], "cosine": [[1, 2]]}',
         '"cosine"'),
        ('similarity.json', '{"sites": [{"path": "a"}], "cosine": []}',
         '"cosine"'),
        ('ablation.json', '{"tasks": ["a"], "loss": [1]}', '"sites"'),
        ('ablation.json', '{"tasks": ["a"], "loss": [1, 2]}', '"loss"'),
        ('routing_controls.json', '{"metrics": {"a": "f1"}}', '"scores"'),
        ('routing_controls.json',
         '{"metrics": {"a": "f1"}, "scores": {"trained": {"b": 1}}}',
         '"scores"'),
        ('metrics/routers.jsonl', '{"step": 1, "sites": {"a": {"load": 1}}}',
         '"selected"'),
        ('metrics/routers.jsonl',
         '{"step": 1, "sites": {"a":'
         ' {"load": [1], "selected": [], "left_behind": 0}}}', '"selected"'),
        ('routing/rows.json', '{"rows": [1]}', 'rows[0]'),
        ('results.json', '{"tasks": {"qa": 3}}', '"qa" of tasks'),
        ('results.json', '{"tasks": {"qa": {"f1": 3}}}',
         '"f1" of qa of tasks'),
    ],
)
def test_a_damaged_field_is_named(run_dir, name, text, field):
  (run_dir / name).write_text(text)
  with refusals.refused(run_dir / name, field):
    run_lib.read(run_dir)


def test_damaged_arrays_are_told_when_they_are_read(run_dir):
  path = run_dir / 'routing' / 'step_20.npz'
  snapshots = run_lib.read(run_dir).snapshots
  path.write_text('PK no archive')
  with refusals.refused(path):
    snapshots.weights(20)
  np.savez(path, site=np.zeros((1, 2, 3)))
  with refusals.refused(path, '"site"', '3 rows'):
    snapshots.weights(20)
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('site.npy', b'')
    archive.infolist()[0].file_size = 2**31  # As a small file may say it.
  with refusals.refused(path, 'bytes'):
    snapshots.weights(20)


@pytest.mark.parametrize(
    'change, names',
    [
        (lambda r: r.pop('tasks'), '"tasks"'),
        (lambda r: r.pop('sites'), '"sites"'),
        (lambda r: r['load'].pop(), '"load"'),
        (lambda r: r['load'][1].pop(), '"load"'),
        (lambda r: r['sites'][2].pop('stack'), '"stack" of sites[2]'),
        (lambda r: r['load'][0][0].pop(), '"load" must be numbers of shape'
         ' [3, 4]'),
        (lambda r: r['entropy'].pop(), '"entropy"'),
        (lambda r: r['load'][0].__setitem__(0, ['x'] * 4), '"load"'),
        (lambda r: r['load'][0].__setitem__(0, [-1, 1, 1, 0]), 'negative'),
    ],
)
def test_malformed_routing(run_dir, change, names):
  path = run_dir / 'routing.json'
  value = json.loads(path.read_text())
  change(value)
  path.write_text(json.dumps(value))
  with refusals.refused(path, names):
    run_lib.read(run_dir)


def test_constant_answers(run_dir):
  path = run_dir / 'results.json'
  value = json.loads(path.read_text())
  metric = value['primary_metric']['stress']
  value['constant_answer'] = {'stress': {metric: 37.5, 'other': 1.0}}
  path.write_text(json.dumps(value))
  results = run_lib.read(run_dir).results
  assert results.constant('stress') == 37.5
  assert math.isnan(results.constant('qa'))


def test_a_configuration_keeps_references_as_they_are_written(tmp_path):
  text = 'A = [@b.c(), @x/d, %E]\ns/b.c.rank = %A\n'
  bound = config_file.bindings(text, tmp_path)
  assert bound == {'A': '[@b.c(), @x/d, %E]', 's/b.c.rank': '%A'}
  assert config_file.macros(bound) == {'A': bound['A']}
  with refusals.refused(tmp_path):
    config_file.bindings('A = (1,', tmp_path)


def test_names_are_short_and_unique():
  paths = [Path('/x/a/seed0'), Path('/x/b/seed0'), Path('/x/b/seed0')]
  assert run_lib.unique_names(paths) == ['a/seed0', 'b/seed0', 'b/seed0 (2)']
  assert run_lib.unique_names([Path('/x/a'), Path('/x/b')]) == ['a', 'b']


def test_no_runs():
  with refusals.refused('RUN'):
    run_lib.read_all([])


@pytest.mark.parametrize('sites', [1.5, 'x', [1], {SITE: 2.0}, None])
def test_a_router_log_without_sites_is_damaged(sites, tmp_path):
  path = tmp_path / 'routers.jsonl'
  with refusals.refused(path, '"sites"'):
    metrics_files.router_log(path, [{'step': 1, 'sites': sites}])
