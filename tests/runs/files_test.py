# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Each file of a run is read as it was written."""

import dataclasses
import json
import math

import numpy as np
import pytest

from moe_peft.runs import ablation_file
from moe_peft.runs import controls_file
from moe_peft.runs import json_file
from moe_peft.runs import metrics_files
from moe_peft.runs import results_file
from moe_peft.runs import row_scores
from moe_peft.runs import run_file
from moe_peft.runs import similarity_file
from moe_peft.runs import site_names
from moe_peft.runs import snapshot_files
from moe_peft.runs import usage_file
from tests import refusals

SITE, LATER = 'encoder/layers_2/mlp/wo', 'encoder/layers_10/mlp/wo'


def _value(path):
  """The JSON of a file; it holds no NaN and names its version."""
  value = json.loads(path.read_text(), parse_constant=pytest.fail)
  assert value['version'] == json_file.VERSION
  return value


def test_run_info(tmp_path):
  assert run_file.read(tmp_path) is None
  info = run_file.RunInfo(
      method=('MoLoRA', 'IA3'), base={'path': None, 'parameters': 3}, seed=0,
      seconds=1.5, versions={'jax': '1'},
      pruned=run_file.Pruning(
          '/old', {SITE: [0, 2]}, {'qa': 1.0}, {'qa': math.inf}
      ),
  )
  info.write(tmp_path)
  assert run_file.is_finished(tmp_path)
  _value(tmp_path / 'run.json')
  read = run_file.read(tmp_path)
  assert math.isnan(read.pruned.loss_after['qa'])
  read.pruned.loss_after['qa'] = math.inf
  assert read == info


@pytest.mark.parametrize('text', ['zz', '', '1', '1f', '3', '2e'])
def test_rows_that_are_not_those_of_the_score(text, tmp_path):
  """They are noticed where a study collects them, with the run's file."""
  values = {'qa': {'accuracy': 50.0}}
  results = results_file.Results(
      'test', {'qa': 4}, base=values, adapted=values,
      primary_metric={'qa': 'accuracy'}, rows={'qa': row_scores.pack([1, 0])},
  )
  results.write(tmp_path)
  assert results_file.read(tmp_path).rows == {'qa': '6'}
  dataclasses.replace(results, rows={'qa': text}).write(tmp_path)
  with refusals.refused(tmp_path / 'results.json', '"rows"', 'qa: '):
    results_file.read(tmp_path)


def test_results(tmp_path):
  results = results_file.Results(
      'test', {'qa': 3}, base={'qa': {'f1': 1.0, 'loss': math.nan}},
      adapted={'qa': {'f1': 2.0, 'loss': 3.0}}, primary_metric={'qa': 'loss'},
      constant_answer={'qa': {'f1': 4.0}}, lower_is_better=('loss', 'ter'),
      questions_cut={'qa': {'left_out': 0.0, 'inputs_cut': 12.5}},
  )
  results.write(tmp_path, 'results_test.json')
  _value(tmp_path / 'results_test.json')
  assert results_file.read(tmp_path) is None
  read = results_file.read(tmp_path, 'results_test.json')
  first, second = read.scores().values()
  assert (first.metric, first.adapted, first.primary) == ('loss', 3.0, True)
  assert math.isnan(first.base) and math.isnan(read.constant('qa'))
  assert (second.metric, second.base, second.primary) == ('f1', 1.0, False)
  assert read.lower_is_better == ('loss', 'ter')
  assert read.questions_cut == results.questions_cut


def test_results_of_a_base_are_those_of_what_was_scored(tmp_path):
  path = tmp_path / 'base.json'
  assert results_file.read_base(path, 'a') is None
  values = {'qa': {'f1': 1.0}}
  path.write_text(json.dumps(values))  # Earlier versions did not say it.
  assert results_file.read_base(path, 'a') is None
  results_file.write_base(path, 'a', values)
  _value(path)
  assert results_file.read_base(path, 'a') == values
  assert results_file.read_base(path, 'b') is None


def test_sites_are_named_and_ordered_by_layer():
  assert site_names.split(LATER) == ('encoder', 10, 'mlp/wo')
  assert sorted([LATER, SITE], key=site_names.order) == [SITE, LATER]
  assert site_names.describe(SITE, 4) == {
      'path': SITE, 'stack': 'encoder', 'layer': 2, 'name': 'mlp/wo',
      'num_experts': 4,
  }


def test_usage(tmp_path):
  random = np.random.default_rng(0)
  measured = {
      site: {
          'load': random.uniform(size=(2, experts)),
          'entropy': random.uniform(size=2),
          'left_behind': np.array([0.0, math.nan]), 'chance': 0.25,
      }
      for site, experts in ((LATER, 4), (SITE, 3))
  }
  usage_file.Usage.of(['a', 'b'], measured).write(tmp_path)
  assert _value(tmp_path / 'routing.json')['sites'][1]['num_experts'] == 4
  read = usage_file.read(tmp_path)
  assert read.tasks == ('a', 'b')
  assert [site.path for site in read.sites] == [SITE, LATER]
  assert (read.sites[1].layer, read.sites[1].name) == (10, 'mlp/wo')
  for site in read.sites:
    for name, array in measured[site.path].items():
      np.testing.assert_array_equal(getattr(site, name), array)


def test_ablation(tmp_path):
  ablation_file.Ablation(
      ('qa',), np.array([2.0]), {SITE: np.array([[2.0], [2.5]])}, 3, 'test',
      {'qa': 8},
  ).write(tmp_path)
  _value(tmp_path / 'ablation.json')
  read = ablation_file.read(tmp_path)
  np.testing.assert_array_equal(read.scores()[SITE], [0, 0.5])
  assert read.is_of(3, 'test', {'qa': 8}) and not read.is_of(3, 'test', {})


def test_routing_controls(tmp_path):
  scores = {'trained': {'qa': 50.0}, 'shuffled': {'qa': math.nan}}
  written = controls_file.Controls(
      {'qa': 'f1'}, scores, 3, 'test', {'qa': 8}
  )
  written.write(tmp_path)
  _value(tmp_path / 'routing_controls.json')
  read = controls_file.read(tmp_path)
  assert math.isnan(read.scores['shuffled'].pop('qa'))
  del scores['shuffled']['qa']
  assert read == written


def test_similarity(tmp_path):
  cosine = np.array([[1.0, 0.123456789], [math.nan, 1.0]])
  similarity_file.Similarity({LATER: cosine, SITE: cosine}).write(tmp_path)
  _value(tmp_path / 'similarity.json')
  read = similarity_file.read(tmp_path).cosine
  assert list(read) == [SITE, LATER]
  np.testing.assert_array_equal(read[SITE], cosine.round(5))


def test_snapshots(tmp_path):
  assert snapshot_files.read(tmp_path) is None
  rows = (snapshot_files.HeldOutRow('qa', {'decoder': ('a', '<b>')}),)
  for step in (0, 10, 2):
    weights = {SITE: np.full((1, 2, 3), step / 4)}
    snapshot_files.write(tmp_path, step, weights, rows)
  _value(tmp_path / 'routing' / 'rows.json')
  read = snapshot_files.read(tmp_path)
  assert read.rows == rows and read.steps == (0, 2, 10)
  np.testing.assert_array_equal(read.weights(2)[SITE], np.full((1, 2, 3), 0.5))
  # Of other rows, as of another split, begins a new story.
  other = (*rows, snapshot_files.HeldOutRow('ner', {'decoder': ('c',)}))
  snapshot_files.write(tmp_path, 12, {SITE: np.ones((2, 2, 3))}, other)
  read = snapshot_files.read(tmp_path)
  assert read.rows == other and read.steps == (12,)
  # So do rows that cannot be read: a run goes on.
  (tmp_path / 'routing' / 'rows.json').write_text('{"rows": [')
  snapshot_files.write(tmp_path, 14, {SITE: np.ones((2, 2, 3))}, other)
  read = snapshot_files.read(tmp_path)
  assert read.rows == other and read.steps == (14,)


def test_lines_of_later_steps_and_half_lines_go_when_a_run_resumes(tmp_path):
  path = tmp_path / 'metrics' / 'train.jsonl'
  lines = metrics_files.JsonLines(path, 0)
  assert lines.is_empty()
  for step in (1, 2, 3):
    loss = math.nan if step == 2 else np.float32(1)
    lines.write({'step': step, 'loss': loss})
  lines.close()
  with path.open('a') as f:
    f.write('{"step": 4, "lo')
  assert metrics_files.read_lines(path)[1] == [4]
  lines = metrics_files.JsonLines(path, 2)
  assert not lines.is_empty()
  lines.close()
  assert path.read_text() == (
      '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": null}\n'
  )


@pytest.mark.parametrize('cut', [5, 25, 30])
def test_rows_that_belong_together_are_all_there_or_made_again(cut, tmp_path):
  """A full disk takes a part of what is written at once, whole lines too."""
  path = tmp_path / metrics_files.EVALUATION
  opened = lambda step: metrics_files.JsonLines(path, step, together=2)
  lines = opened(0)
  for step in (0, 4, 8):
    lines.write(*({'step': step, 'task': x} for x in 'ab'))
  lines.close()
  whole = path.read_bytes()
  path.write_bytes(whole[:-cut])
  lines = opened(8)
  assert lines.steps == {0, 4}
  lines.write(*({'step': 8, 'task': x} for x in 'ab'))
  lines.close()
  assert path.read_bytes() == whole
  lines = opened(8)
  assert lines.steps == {0, 4, 8}
  lines.close()


def test_processes(tmp_path):
  assert metrics_files.processes(tmp_path) == []
  lines = metrics_files.JsonLines(tmp_path / metrics_files.PROCESSES, 0)
  lines.write({'step': 3, 'seconds': 1.5, 'peak_memory_bytes': 7})
  lines.close()
  assert metrics_files.processes(tmp_path) == [
      metrics_files.Process(3, 1.5, 7, device='')
  ]


def test_files_of_a_later_program_are_refused(tmp_path):
  (tmp_path / 'run.json').write_text('{"version": 99}')
  with refusals.refused(tmp_path / 'run.json', 'version 99'):
    run_file.read(tmp_path)


@pytest.mark.parametrize('value, field', [
    ('{"steps": "many"}', '"steps"'), ('{"seed": true}', '"seed"'),
    ('{"versions": {"jax": 1}}', '"jax" of versions'),
    ('{"pruned": {}}', '"from" of pruned'), ('{"method": [1]}', '"method"'),
    ('{"pruned": {"from": "x", "loss_after": {"qa": "low"}}}',
     '"qa" of loss_after of pruned'),
])
def test_a_field_of_another_kind_is_named(tmp_path, value, field):
  (tmp_path / 'run.json').write_text(value)
  with refusals.refused(tmp_path / 'run.json', field):
    run_file.read(tmp_path)
