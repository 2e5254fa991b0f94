# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Experts that are taken away, for a measurement or for good."""

import argparse
import contextlib
import dataclasses
import json

from flax import linen as nn
import gin
import jax
import numpy as np
import pytest

from moe_peft import errors
from moe_peft import gin_files
from moe_peft.cli import ablate
from moe_peft.cli import flags
from moe_peft.cli import prune
from moe_peft.core import partitioning
from moe_peft.core import routing
from moe_peft.core import trainable
from moe_peft.experts import ablation
from moe_peft.experts import commands
from moe_peft.experts import pruning
from moe_peft.report import page
from moe_peft.runs import ablation_file
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import loop
from moe_peft.training import restored
from moe_peft.training import run
from moe_peft.training import scoring
from moe_peft.training import train_step
from tests import refusals
from tests.training import tiny

MLP = {'SITES': '.*/mlp/wo'}


def _setup(tmp_path, method='molora', **bindings):
  """A tiny model whose adapters and routers matter, and a few rows.

  Returns:
    (setup, flat parameters, batches by task).
  """
  experiment = tiny.experiment(tmp_path, method, **{**MLP, **bindings})
  setup = experiment_lib.prepare(experiment)
  random = np.random.default_rng(0)
  params = {
      name: (
          np.asarray(value) + random.normal(size=value.shape).astype('float32')
          if trainable.is_adapter(name) else np.asarray(value)
      )
      for name, value in {**setup.frozen, **setup.trainable}.items()
  }
  return setup, params, scoring.make_evaluator(setup).first_rows(8)


def _loss(setup, params, batch):
  model = setup.experiment.model
  with partitioning.use_mesh(setup.mesh):
    score = jax.jit(model.score)(trainable.unflatten(params), dict(batch))
  return -float(score.sum()) / batch['decoder_loss_weights'].sum()


def _without(params, site, expert):
  """Removes an expert by hand; its arrays are gone, not masked."""
  cut = {'lora_a': 0, 'lora_b': 0, 'scaling': 0, 'router/kernel': 1,
         'router/bias': 0}
  return {
      name: (
          np.delete(value, expert, axis=cut[name.split('/adapter/')[1]])
          if name.startswith(f'{site}/adapter/') else value
      )
      for name, value in params.items()
  }


@pytest.mark.slow
@pytest.mark.parametrize(
    'method', ['molora', pytest.param('molora_topk', marks=pytest.mark.long)]
)
def test_the_loss_without_an_expert_is_that_of_a_model_without_it(
    tmp_path, method
):
  site = 'encoder/layers_0/mlp/wo'
  setup, params, batches = _setup(
      tmp_path, method, SITES=f'.*{site}', NUM_EXPERTS=4
  )
  loss, without = ablation.leave_one_out(
      setup.experiment.model, params, batches, setup.mesh
  )
  assert list(without) == [site]
  batch = batches['past_tense']
  assert loss[0] == pytest.approx(
      _loss(setup, params, batch), rel=1e-5
  )
  smaller, *_ = _setup(
      tmp_path / 'smaller', method, SITES=f'.*{site}', NUM_EXPERTS=3
  )
  for expert in range(4):
    expected = _loss(smaller, _without(params, site, expert), batch)
    (found,) = without[site][expert]
    assert found == pytest.approx(expected, rel=1e-5)
    assert abs(found - loss[0]) > 1e-4  # It was there before.


@pytest.mark.slow
def test_an_expert_that_no_token_takes_is_worth_nothing(tmp_path):
  """A control: top-2 of SMoRA, whose last expert is never selected."""
  setup, params, batches = _setup(
      tmp_path, 'smora', NUM_SELECTED_EXPERTS=2,
      **{'smora.SMoRA.num_experts': 4},
  )
  for name in params:
    if name.endswith('router/bias'):
      params[name] = np.array([0.5, 0.5, 0.5, -50], 'float32')
  loss, without = ablation.leave_one_out(
      setup.experiment.model, params, batches, setup.mesh
  )
  for losses in without.values():
    scores = losses[:, 0] - loss[0]
    assert scores[3] == pytest.approx(0, abs=1e-5)
    assert np.abs(scores[:3]).max() > 1e-3


@pytest.mark.slow
def test_a_biased_expert_that_is_missing_is_not_selected(tmp_path):
  setup, params, batches = _setup(
      tmp_path, 'smora', NUM_SELECTED_EXPERTS=2,
      **{'smora.SMoRA.num_experts': 4},
  )
  batch = batches['past_tense']
  model, nested = setup.experiment.model, trainable.unflatten(params)
  site = 'decoder/layers_0/mlp/wo'
  nested['decoder']['layers_0']['mlp']['wo']['adapter']['router']['bias'] = (
      np.array([9, 0, 0, 0], 'float32')
  )
  apply = lambda params: model.apply(params, batch, mutable=('routing',))
  masks = {site: np.array([False, True, True, True])}
  with partitioning.use_mesh(setup.mesh):
    _, sown = jax.jit(lambda p: ablation.apply_masked(apply, masks, p))(nested)
  (weights,) = trainable.flatten(sown['routing'])[
      f'{site}/adapter/combine_weights'
  ]
  valid = batch['decoder_target_tokens'] > 0
  used = (np.asarray(weights)[valid] > 0).mean(axis=0)
  assert used[0] == 0 and used.sum() == pytest.approx(2)


def _save(setup, params, step=3):
  """Makes the checkpoint of a run that was 'trained' to these parameters."""
  setup = dataclasses.replace(
      setup,
      trainable={
          k: jax.device_put(params[k], setup.shardings[k])
          for k in setup.trainable
      },
  )
  with contextlib.closing(loop.open_checkpoints(setup)) as checkpointer:
    state = train_step.init_state(setup)
    checkpointer.save(step, state, loop.train_data(setup.experiment))
    checkpointer.wait()
  folder = setup.experiment.run_dir
  (folder / 'config.gin').write_text(gin.config_str())


def _logits(run_dir, batch, masks):
  """Logits of a run as the commands read it, under masks."""
  flags.load_run(
      argparse.Namespace(
          run=str(run_dir), gin_file=[], gin_bindings=[], gin_search_paths='',
          trust_gin=False,
      )
  )
  setup, params = restored.restore(run.build())
  apply = lambda params: setup.experiment.model.apply(
      trainable.unflatten(params), batch
  )[0]
  with partitioning.use_mesh(setup.mesh):
    return jax.device_get(
        jax.jit(lambda p: ablation.apply_masked(apply, masks, p))(params)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ('method', 'bindings'),
    [
        ('molora', {'NUM_EXPERTS': 4}),
        pytest.param('molora_topk', {'NUM_EXPERTS': 4}, marks=pytest.mark.long),
        pytest.param('sira', {'NUM_EXPERTS': 6}, marks=pytest.mark.long),
        pytest.param(
            'mov', {'NUM_EXPERTS': 4, 'SITES': '.*/(key|act)'},
            marks=pytest.mark.long,
        ),
        pytest.param('adamix', {'NUM_EXPERTS': 4}, marks=pytest.mark.long),
        pytest.param('mode', {'NUM_EXPERTS': 4}, marks=pytest.mark.long),
        ('mixlora', {'NUM_EXPERTS': 4}),
    ],
)
def test_a_pruned_run_is_the_masked_one(tmp_path, method, bindings, capsys):
  keep = 4 if method == 'sira' else 3
  source, out = tmp_path / 'run', tmp_path / 'pruned'
  setup, params, batches = _setup(source, method, **bindings)
  _save(setup, params)
  arguments = [str(source), f'--keep={keep}', f'--out={out}', '--rows=8']
  assert prune.main(arguments) is None
  assert 'past_tense' in capsys.readouterr().out

  info = json.loads((out / 'run.json').read_text())['pruned']
  scores = ablation_file.read(source).scores()
  masks = {}
  for site, kept in info['kept'].items():
    assert len(kept) == keep
    worst = set(range(len(scores[site]))) - set(kept)
    assert scores[site][list(worst)].max() <= scores[site][kept].min()
    masks[site] = np.isin(np.arange(len(scores[site])), kept)
  # Adapters are what gin says when a model is called, so each run in turn.
  batch = dict(batches['past_tense'])
  masked = _logits(source, batch, masks)
  pruned = _logits(out, batch, {})
  assert gin_files.macros() and run.build().run_dir == out
  np.testing.assert_allclose(pruned, masked, rtol=1e-3, atol=1e-3)
  assert np.abs(pruned - _logits(source, batch, {})).max() > 0.1
  assert info['loss_after']['past_tense'] != info['loss_before']['past_tense']
  text = page.write_report([out], tmp_path / 'report.html').read_text()
  assert 'This run was pruned' in text and 'past_tense' in text


@pytest.mark.slow
def test_scores_of_another_step_are_measured_anew(
    tmp_path, monkeypatch, capsys
):
  source = tmp_path / 'run'
  file = source / ablation_file.FILE
  sites = '.*encoder/layers_0/mlp/wo'
  setup, params, _ = _setup(source, SITES=sites)
  _save(setup, params)

  def prune_to(name):
    out = tmp_path / name
    prune.main([str(source), '--keep=2', f'--out={out}', '--rows=8'])
    said = ' '.join(capsys.readouterr().err.split())  # Lines are wrapped.
    return 'scored anew' in said

  assert ablate.main([str(source), '--rows=8']) is None
  first = ablation_file.read(source)
  rows = {'past_tense': 8}
  assert first.is_of(3, 'validation', rows)
  assert not first.is_of(4, 'validation', rows)
  assert not first.is_of(3, 'test', rows)
  assert not first.is_of(3, 'validation', {'past_tense': 16})
  # Scores that favor the last two commands, as if they had been measured.
  value = json.loads(file.read_text())
  for without in value['without']:
    for expert, losses in enumerate(without):
      losses[0] = value['loss'][0] + expert
  file.write_text(json.dumps(value))
  assert not prune_to('kept')
  info = json.loads((tmp_path / 'kept' / 'run.json').read_text())['pruned']
  assert set(map(tuple, info['kept'].values())) == {(2, 3)}

  setup, params, _ = _setup(source, SITES=sites)  # Pruning has changed gin.
  _save(setup, params, step=4)
  assert prune_to('trained')
  second = ablation_file.read(source)
  assert second.is_of(4, 'validation', rows)
  assert not list(source.glob('*.partial'))
  # The parameters are the same ones, and so are their scores.
  for site, scores in first.scores().items():
    np.testing.assert_allclose(second.scores()[site], scores, atol=1e-5)

  file.write_text('{"tasks": ["past_tense"], "loss": [')
  with pytest.raises(errors.UserError, match=ablation_file.FILE):
    prune_to('corrupt')


class _CallsByKeyword(nn.Module):
  """`site/adapter/router`, whose arguments are given by name."""

  names: tuple[str, ...] = ('site', 'adapter')

  @nn.compact
  def __call__(self, x):
    if self.names:
      return _CallsByKeyword(self.names[1:], name=self.names[0])(x)
    return routing.Router(3, name='router')(inputs=x).combine_weights


def test_a_router_that_is_called_with_keywords_is_masked_too():
  x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype('float32')
  network = _CallsByKeyword()
  params = network.init(jax.random.key(0), x)
  apply = lambda params: network.apply(params, x)
  mask = np.array([True, False, True])
  found = ablation.apply_masked(apply, {'site': mask}, params)
  np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)
  assert not found[..., 1].any() and apply(params)[..., 1].all()


@pytest.mark.parametrize(
    ('method', 'bindings', 'keep', 'where', 'name'),
    [
        ('molora', {}, 4, '--keep', 'the 4 experts'),
        ('molora', {}, 1, '--keep', 1),
        ('molora_topk', {'NUM_EXPERTS': 4}, 1, '--keep', 'at least 2'),
        ('lora', {}, 2, 'ADAPTER_RULES', 'router'),
        ('expert_choice', {'NUM_EXPERTS': 4, 'SITES': '.*encoder/.*/wo'}, 2,
         '--keep', 'depends on'),
        ('bank_xlora', {'NUM_EXPERTS': 4}, 2, '--keep', 'all layers'),
        ('molora', {'SCAN_LAYERS': True}, 2, 'SCAN_LAYERS', False),
        ('lora_id', {'NUM_EXPERTS': 3, 'EXAMPLE_IDS': ('past_tense', 'b', 'c')},
         2, '--keep', 'of an id'),
    ],
)
def test_what_cannot_be_pruned(tmp_path, method, bindings, keep, where, name):
  with refusals.refused(where, name):
    _check_pruning(tmp_path, method, bindings, keep)


@pytest.mark.parametrize('method', ['molora', 'adamole'])
def test_what_can_be_pruned(tmp_path, method):
  assert _check_pruning(tmp_path, method, {'NUM_EXPERTS': 4}, 2) == 4


def _check_pruning(tmp_path, method, bindings, keep):
  """Checks the routers of a method; returns their number of experts."""
  model = tiny.experiment(tmp_path, method, **{**MLP, **bindings}).model
  lengths = {'inputs': 4, 'targets': 4}
  init = lambda: model.init(jax.random.key(0), lengths)['params']
  params = trainable.flatten(jax.eval_shape(init))
  ones = np.ones((1, 4), np.int32)
  names = ('encoder_input_tokens', 'decoder_input_tokens',
           'decoder_target_tokens', 'decoder_loss_weights', 'example_ids')
  routers = ablation.routers(model, params, dict.fromkeys(names, ones))
  number = pruning.check_routers(routers, keep)
  pruning.check_keep(number, keep)
  return number


@pytest.mark.slow
def test_a_frozen_router_cannot_be_pruned(tmp_path):
  setup, params, batches = _setup(
      tmp_path / 'run', 'smoe_dropout', NUM_SELECTED_EXPERTS=4, FIRST_K=2
  )
  routers = ablation.routers(
      setup.experiment.model, params, batches['past_tense']
  )
  scores = {site: np.arange(16) for site in routers}
  with refusals.refused('--keep', 'does not train'):
    pruning.write(
        setup, params, 3, scores, batches, 8, tmp_path / 'out'
    )


def test_a_folder_with_a_run_is_not_written_over(tmp_path):
  (tmp_path / 'config.gin').write_text('')
  tiny.load(tmp_path)
  with refusals.refused('--out', tmp_path):
    commands.prune(2, tmp_path, 'validation', 8)


def test_the_kept_experts_are_the_needed_ones():
  kept = pruning.choose({'a': np.array([0.1, 0.3, -0.2, 0.3])}, 2)
  np.testing.assert_array_equal(kept['a'], [1, 3])
  kept = pruning.choose({'a': np.zeros(4)}, 2)
  np.testing.assert_array_equal(kept['a'], [0, 1])


@pytest.mark.slow
def test_slices_of_parameters():
  shapes = {
      'a/adapter/lora_a': np.zeros((2, 5, 1)),
      'a/adapter/router/kernel': np.zeros((5, 2)),
      'a/adapter/ranks/kernel': np.zeros((5, 3 * 2)),
      'a/kernel': np.zeros((5, 5)),
  }
  whole = {
      'a/adapter/lora_a': np.arange(20).reshape(4, 5, 1),
      'a/adapter/router/kernel': np.arange(20).reshape(5, 4),
      'a/adapter/ranks/kernel': np.arange(60).reshape(5, 12),
      'a/kernel': np.ones((5, 5)),
  }
  kept = {'a': np.array([1, 3])}
  sliced = pruning.slice_params(whole, shapes, kept)
  np.testing.assert_array_equal(
      sliced['a/adapter/lora_a'], whole['a/adapter/lora_a'][[1, 3]]
  )
  np.testing.assert_array_equal(
      sliced['a/adapter/router/kernel'],
      whole['a/adapter/router/kernel'][:, [1, 3]],
  )
  # Three distributions beside each other: each keeps its second and fourth.
  np.testing.assert_array_equal(
      sliced['a/adapter/ranks/kernel'],
      whole['a/adapter/ranks/kernel'].reshape(5, 3, 4)[..., [1, 3]].reshape(
          5, 6
      ),
  )
  assert sliced['a/kernel'] is whole['a/kernel']
  with refusals.refused('--keep', 'a/adapter/x'):
    pruning.slice_params(
        {'a/adapter/x': np.zeros((4, 4))}, {'a/adapter/x': np.zeros((2, 2))},
        kept,
    )
