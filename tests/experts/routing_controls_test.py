# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Scores of runs whose routers are overruled."""

from flax import linen as nn
import jax
import numpy as np
import pytest

from moe_peft.cli import ablate
from moe_peft.core import partitioning
from moe_peft.core import routing
from moe_peft.core import tokens
from moe_peft.core import trainable
from moe_peft.evaluation import evaluator as evaluator_lib
from moe_peft.experts import ablation
from moe_peft.experts import routing_controls
from moe_peft.runs import controls_file
from moe_peft.training import experiment as experiment_lib
from tests import refusals
from tests.experts import ablation_test
from tests.training import tiny

SITE = 'site'


class _Routed(nn.Module):
  """A router at `site/adapter/router`."""

  names: tuple[str, ...] = (SITE, 'adapter')

  @nn.compact
  def __call__(self, x, known):
    if self.names:
      return _Routed(self.names[1:], name=self.names[0])(x, known)
    return routing.Router(3, name='router')(x, known)


def _overruled(change, weights, known):
  """The weights of three experts as they are, and overruled."""
  x = np.random.default_rng(0).normal(size=(4, 5, 6)).astype('float32')
  network = _Routed()
  params = network.init(jax.random.key(0), x, known)
  apply = lambda: network.apply(params, x, known)
  found = ablation.apply_overruled(
      apply, lambda *args: change(weights, *args)
  )
  assert found.num_selected == 3
  return apply().combine_weights, found.combine_weights


def test_shuffled_tokens_have_the_weights_of_others_and_padding_its_own():
  valid = np.arange(20).reshape(4, 5) % 5 < [[5], [3], [1], [0]]
  before, after = _overruled(
      routing_controls.shuffle, {}, tokens.Tokens(valid=valid)
  )
  np.testing.assert_array_equal(before[~valid], after[~valid])
  rows = lambda weights: np.sort(np.asarray(weights)[valid][:, 0])
  np.testing.assert_array_equal(rows(before), rows(after))
  moved = (np.asarray(before) != np.asarray(after)).any(-1)[valid]
  assert moved.sum() > 5


def test_replaced_weights_are_those_of_the_task():
  table = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
  ids = np.array([[1], [0], [1], [-1]])  # The last row is filling.
  known = tokens.Tokens(example_ids=ids)
  before, after = _overruled(routing_controls.replace, {SITE: table}, known)
  for row, task in enumerate([1, 0, 1]):
    np.testing.assert_array_equal(after[row], np.tile(table[task], (5, 1)))
  elsewhere, same = _overruled(routing_controls.replace, {}, known)
  np.testing.assert_array_equal(elsewhere, same)
  np.testing.assert_array_equal(elsewhere, before)


def test_fixed_weights():
  load = np.array([[0.5, 0.1], [0.3, 0.1]])
  made = routing_controls.fixed_weights({SITE: load})
  expected = {
      controls_file.TASK_MEAN: load,
      controls_file.MEAN: [[0.4, 0.1]] * 2,
      controls_file.OTHER_TASK: load[::-1],
      controls_file.UNIFORM: [[0.25, 0.25]] * 2,
  }
  assert made.keys() == expected.keys()
  for name, values in expected.items():
    np.testing.assert_allclose(made[name][SITE], values, rtol=1e-6)
  alone = routing_controls.fixed_weights({SITE: load[:1]})
  assert list(alone) == [controls_file.TASK_MEAN, controls_file.UNIFORM]


@pytest.mark.slow
def test_one_expert_for_all_tokens_is_what_is_left_without_the_others(tmp_path):
  setup, params, batches = ablation_test._setup(tmp_path)
  batch = dict(batches['past_tense'])
  batch[tokens.EXAMPLE_IDS] = np.ones((8, 1), np.int32)
  model = setup.experiment.model
  sites = ablation.routers(model, params, batch)
  one = np.array([[0, 0, 1, 0]], np.float32)
  overruled = routing_controls._Overruled(model, routing_controls.replace)
  weights = {f'{routing_controls._WEIGHTS}/{site}': one for site in sites}
  masks = {site: one[0] > 0 for site in sites}
  score = lambda p: overruled.score(trainable.unflatten(p), batch)
  masked = lambda p: ablation.apply_masked(
      model.score, masks, trainable.unflatten(p), batch
  )
  with partitioning.use_mesh(setup.mesh):
    found = jax.jit(score)({**params, **weights})
    expected = jax.jit(masked)(params)
    trained = jax.jit(lambda p: model.score(trainable.unflatten(p), batch))(
        params
    )
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  assert np.abs(np.asarray(found) - np.asarray(trained)).max() > 0.1


@pytest.mark.slow
def test_a_router_that_decides_nothing_is_worth_nothing(tmp_path, monkeypatch):
  """A router of zeros is uniform: every control has the losses of the run."""
  run_dir = tmp_path / 'run'
  setup, params, _ = ablation_test._setup(
      run_dir, MIXTURE_OR_TASK_NAME='quickstart', EVAL_EXAMPLES=8
  )
  for name in params:
    if '/router/' in name:
      params[name] = np.zeros_like(params[name])
  ablation_test._save(setup, params)
  evaluate, losses = evaluator_lib.Evaluator.evaluate, []

  def kept(self, *args, **kwargs):
    results = evaluate(self, *args, **kwargs)
    losses.append([x['loss'] for x in results.values() if 'loss' in x])
    return results

  monkeypatch.setattr(evaluator_lib.Evaluator, 'evaluate', kept)
  assert ablate.main([str(run_dir), '--routing']) is None
  found = controls_file.read(run_dir)
  assert list(found.scores) == [
      'trained', 'shuffled', 'task_mean', 'mean', 'other_task', 'uniform'
  ]
  assert (found.step, found.split) == (3, 'validation')
  for scores in found.scores.values():
    assert scores.keys() == found.metrics.keys()
  for values in losses[1:]:
    np.testing.assert_allclose(values, losses[0], rtol=1e-5)


@pytest.mark.parametrize(
    ('method', 'bindings', 'where', 'name'),
    [
        ('lora', {}, 'ADAPTER_RULES', 'router'),
        ('molora', {'SCAN_LAYERS': True}, 'SCAN_LAYERS', False),
        ('lora_id', {'NUM_EXPERTS': 1, 'EXAMPLE_IDS': ('past_tense',)},
         'EXAMPLE_IDS', 'ids of their own'),
    ],
)
def test_what_has_no_controls(tmp_path, method, bindings, where, name):
  experiment = tiny.experiment(
      tmp_path, method, **{**ablation_test.MLP, **bindings}
  )
  setup = experiment_lib.prepare(experiment)
  params = {**setup.frozen, **setup.trainable}
  with refusals.refused(where, name):
    routing_controls.measure(setup, params, 0)
