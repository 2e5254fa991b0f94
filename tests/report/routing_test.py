# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the page says of routers, tokens and single experts."""

import json

import numpy as np
import pytest

from moe_peft.report import experts
from moe_peft.report import heatmaps
from moe_peft.report import page
from moe_peft.report import routing
from moe_peft.report import tokens
from moe_peft.runs import run as run_lib
from moe_peft.runs import usage_file

SITE = 'encoder/layers_0/attention/query'


def _drift(run_dir):
  return routing.Drift(run_lib.read(run_dir).snapshots)


def test_drift_of_snapshots(run_dir):
  drift = _drift(run_dir)
  np.testing.assert_array_equal(drift.steps, [0, 20, 40])
  # From an equal share of four to one expert: three quarters have moved.
  np.testing.assert_allclose(drift.moved[SITE], [0, 0.75, 0.75])
  np.testing.assert_allclose(drift.stepped[SITE], [0, 0.75, 0])
  since = drift.curve(drift.stepped, first=1)
  np.testing.assert_allclose(since.values, [0.75, 0])


def test_padding_does_not_drift(run_dir):
  """Only what lies beyond the pieces changes."""
  file = run_dir / 'routing' / 'step_0.npz'
  arrays = dict(np.load(run_dir / 'routing' / 'step_20.npz'))
  for weights in arrays.values():
    weights[:, 3:] = 0.25
  np.savez(file, **arrays)
  np.testing.assert_allclose(_drift(run_dir).moved[SITE], 0)


@pytest.mark.slow
def test_a_collapsed_router_is_told(run_dir):
  path = run_dir / 'metrics' / 'routers.jsonl'
  means = {'load': [0.97, 0.01, 0.01, 0.01], 'selected': 4, 'left_behind': 0}
  path.write_text(json.dumps({'step': 20, 'sites': {SITE: means}}) + '\n')
  run = run_lib.read(run_dir)
  (notice,) = routing.collapsed(run)
  assert SITE in notice and '1.2 of 4' in notice
  assert notice in page.page([run])


def test_an_older_run_has_none_of_it(run_dir):
  for name in ('similarity.json', 'ablation.json', 'routing_controls.json',
               'metrics/routers.jsonl'):
    (run_dir / name).unlink()
  for file in (run_dir / 'routing').iterdir():
    file.unlink()
  text = page.write_report([run_dir], run_dir / 'r.html').read_text()
  assert 'No router was logged' in text
  assert 'no snapshot of its routers' in text
  assert f'moe_peft ablate {run_dir}</code>' in text
  assert f'moe_peft ablate {run_dir} --routing' in text


@pytest.mark.slow
def test_page(run_dir, tmp_path):
  text = page.write_report([run_dir], tmp_path / 'r.html').read_text()
  for words in (
      'Routers over time', 'Drift from step 0 to step 40', 'By chance',
      'Tokens left behind', 'None at evaluation.', 'Leave one expert out',
      'Experts that are needed most', '+0.250', 'How alike the experts are',
      'What routing is worth', '<td>51.25</td>',
  ):
    assert words in text, words
  # All of the weight is at expert 2; the row's text is escaped.
  assert '<span class="x2 l3">ab⟨end⟩<sub>2</sub></span>' in text
  assert '⟨start⟩&lt;i&gt;' in text


@pytest.mark.slow
def test_what_is_not_finite_leaves_its_place_empty(run_dir, tmp_path):
  path = run_dir / 'ablation.json'
  value = json.loads(path.read_text())
  value['without'] = [[[None] * len(row) for row in x]
                      for x in value['without']]
  # The head of a model may have a router too; it is in no layer.
  path.write_text(json.dumps(value).replace('layers_0/attention/', ''))
  last = run_dir / 'routing' / 'step_40.npz'
  arrays = dict(np.load(last))
  np.savez(last, **{k: np.full_like(x, np.nan) for k, x in arrays.items()})
  text = page.write_report([run_dir], tmp_path / 'r.html').read_text()
  assert 'Leave one expert out' in text and 'Drift from step 0' in text


@pytest.mark.slow
def test_a_pruned_run_says_what_it_lost(run_dir, tmp_path):
  path = run_dir / 'run.json'
  value = json.loads(path.read_text())
  value['pruned'] = {
      'from': '/whole', 'kept': {SITE: [0, 2]}, 'loss_before': {'qa': 1.5},
      'loss_after': {'qa': 1.75},
  }
  path.write_text(json.dumps(value))
  text = page.write_report([run_dir], tmp_path / 'r.html').read_text()
  assert 'was pruned and not trained' in text
  assert 'with all experts of /whole' in text and '+0.250' in text


def test_tokens_that_differ_are_told_apart():
  weights = np.array([[0.5, 0.5], [0.4, 0.6], [0.05, 0.95], [0, 0], [1, 0]])
  assert tokens._spans('abcde', weights) == [
      ('a', 'x0 l1', 0), ('b', 'x1 l2', 1), ('c', 'x1 l3', ''), ('d', '', ''),
      ('e', 'x0 l3', 0),
  ]


def test_experts_are_ordered_by_their_worth_and_likeness():
  worth = {'a/layers_0/wo': np.array([0.1, -0.5]),
           'a/layers_1/wo': np.array([0.3, 0.0])}
  assert experts.largest(worth) == 0.5
  assert experts.most_needed(worth)[0] == (0.3, 'a/layers_1/wo', 0)
  worth['a/layers_2/wo'] = np.array([np.nan, 0.2])  # Its loss is not finite.
  assert experts.largest(worth) == 0.5
  assert len(experts.most_needed(worth)) == 5
  cosine = {'a': np.array([[1, 0.25], [0.25, 1]]),
            'b': np.array([[1, 0.5], [0.5, 1]]), 'c': np.full((2, 2), np.nan)}
  assert experts.mean_cosines(cosine) == {'b': 0.5, 'a': 0.25}


@pytest.mark.slow
def test_one_task_has_no_mutual_information(run_dir, tmp_path):
  path = run_dir / 'routing.json'
  value = json.loads(path.read_text())
  for key in ('tasks', 'load', 'entropy', 'left_behind'):
    value[key] = value[key][:1]
  value['chance'] = [None] * len(value['sites'])
  path.write_text(json.dumps(value))
  text = page.write_report([run_dir], tmp_path / 'r.html').read_text()
  assert 'needs at least two tasks' in text


@pytest.mark.slow
def test_sites_with_different_expert_counts(run_dir, tmp_path):
  path = run_dir / 'routing.json'
  value = json.loads(path.read_text())
  value['sites'][0]['num_experts'] = 2
  for row in value['load']:
    row[0] = [0.25, 0.75]
  path.write_text(json.dumps(value))
  text = page.write_report([run_dir], tmp_path / 'r.html').read_text()
  assert 'uniform 1/2 = 0.5' in text and 'uniform 1/4 = 0.25' in text


@pytest.mark.parametrize(
    'load, expected',
    [
        # Nearly uniform: at least 10 % to both sides, so that it looks so.
        ([0.25, 0.25, 0.26, 0.24], (0.225, 0.275)),
        ([0.2, 0.2, 0.2, 0.4], (0.2, 0.4)),
        ([1.0, 0.0, 0.0, 0.0], (0.0, 1.0)),
        ([0.9, 0.01, 0.04, 0.05], (0.0, 0.9)),
    ],
)
def test_load_range(load, expected):
  site = usage_file.SiteUsage(
      'p', 'encoder', 'n', 0, np.array([load]), np.zeros(1), np.zeros(1)
  )
  assert heatmaps.load_range([site]) == pytest.approx(expected)
