# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Losses of logits that are made in parts are those of all logits at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import inject
from moe_peft.core import trainable
from moe_peft.methods import adamix
from moe_peft.methods import lora
from moe_peft.models import t5
from moe_peft.models import token_scores
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import train_step
from tests.training import tiny

BATCH, LENGTH, EMBED, VOCAB = 2, 13, 6, 40


@pytest.fixture(name='parts')
def _parts(monkeypatch):
  monkeypatch.setattr(token_scores, 'MOST', 0)
  monkeypatch.setattr(token_scores, 'PART', 4 * BATCH * VOCAB)


def case():
  rng = np.random.default_rng(0)
  features = jnp.asarray(rng.standard_normal((BATCH, LENGTH, EMBED)), 'float32')
  kernel = jnp.asarray(rng.standard_normal((EMBED, VOCAB)), 'float32')
  weights = jnp.asarray(rng.random((BATCH, LENGTH)), 'float32')
  return features, kernel, weights, rng.integers(VOCAB, size=(BATCH, LENGTH))


def objective(features, kernel, weights, targets):
  scores = token_scores.of_features(
      lambda x: 8 * jnp.tanh(x @ kernel), features, targets, VOCAB
  )
  losses = scores.loss + 0.1 * scores.log_z**2
  losses += 0.2 * (scores.target - scores.mean)
  return jnp.sum(losses * weights), scores


@pytest.mark.slow
def test_scores_and_gradients_are_the_same(parts):
  """Also that of the output layer, with z-loss and smoothing; 13 is prime."""
  features, kernel, weights, targets = case()
  run = lambda: jax.value_and_grad(objective, (0, 1, 2), has_aux=True)(
      features, kernel, weights, targets
  )
  found = run()
  token_scores.MOST = 2**26
  expected = run()
  assert found[0][1].loss.shape == (BATCH, LENGTH)
  jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
      found, expected,
  )


def test_no_array_has_all_logits(parts):
  shapes = str(jax.make_jaxpr(jax.grad(lambda *x: objective(*x)[0]))(*case()))
  assert f'[{BATCH},4,{VOCAB}]' in shapes
  assert f'[{BATCH},{LENGTH},{VOCAB}]' not in shapes


def test_the_compiler_allots_less(monkeypatch):
  """A step of 4,096 tokens over 4,096 words, in 16 parts."""
  shapes = [(2, 2048, 8), (8, 4096), (2, 2048)]
  arrays = [jax.ShapeDtypeStruct(x, jnp.float32) for x in shapes]
  arrays.append(jax.ShapeDtypeStruct((2, 2048), jnp.int32))

  def loss(features, kernel, weights, targets):
    scores = token_scores.of_features(
        lambda x: x @ kernel, features, targets, 4096
    )
    return jnp.sum(scores.loss * weights)

  def temporaries():
    compiled = jax.jit(jax.grad(loss)).lower(*arrays).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  whole = temporaries()
  monkeypatch.setattr(token_scores, 'MOST', 0)
  monkeypatch.setattr(token_scores, 'PART', 2**20)
  assert temporaries() < whole / 4


@pytest.mark.parametrize(
    ('rule', 'given'),
    [(inject.OutputRule, True), (adamix.ConsistencyRule, False)],
)
def test_what_reads_the_result_of_a_model_gets_logits(rule, given):
  network = t5.Transformer(t5.T5Config(vocab_size=8))
  module = inject.AdaptedModule(network, (rule('.*/wo', lora.LoRA),))
  assert token_scores.are_given_by(module) == given


@pytest.mark.slow
@pytest.mark.parametrize('tied', [False, True])
def test_a_model_has_the_same_loss_and_scores(tmp_path, parts, tied):
  experiment = tiny.experiment(
      tmp_path, 'lora', ACTIVATION_DTYPE='float32',
      **{'t5.T5Config.logits_via_embedding': tied},
  )
  setup = experiment_lib.prepare(experiment)
  rng = np.random.default_rng(1)
  batch = {
      k: rng.integers(1, 200, x.shape, np.int32)
      for k, x in train_step.abstract_batch(setup).items()
  }

  def run(trained):
    params = trainable.unflatten({**setup.frozen, **trained})
    model = experiment.model
    return model.loss(params, batch)[0], model.score(params, batch)

  with setup.context():
    shapes = str(jax.make_jaxpr(run)(setup.trainable))
    vocab = setup.frozen['token_embedder/embedding'].shape[0]
    assert f'[8,16,{vocab}]' not in shapes
    found = jax.jit(run)(setup.trainable)
    token_scores.MOST = 2**26
    expected = jax.jit(lambda x: run(x))(setup.trainable)  # noqa: PLW0108
  jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), found, expected
  )
