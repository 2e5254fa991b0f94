# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Losses of single methods, worked out by hand."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import inject
from moe_peft.core import losses
from moe_peft.core import routing
from moe_peft.core import tokens as tokens_lib
from moe_peft.methods import adamix
from moe_peft.methods import moelora
from moe_peft.methods import molora
from moe_peft.methods import mov
from tests import tiny_network


def contrast(features, experts, used=None, temperature=0.5):
  used = np.ones(len(experts), bool) if used is None else np.array(used)
  return jax.jit(moelora.contrastive_loss, static_argnums=3)(
      features, np.array(experts), used, temperature
  )


def test_contrastive_by_hand():
  features = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
  # Normalized: z0 = z1, z2 orthogonal. Pair 2 has no positive.
  want = -np.log(np.exp(2.0) / (np.exp(2.0) + 1.0))
  np.testing.assert_allclose(contrast(features, [0, 0, 1]), want, rtol=1e-5)
  # An unused pair does not count, whatever it holds.
  more = np.concatenate([features, [[5.0, 5.0]]])
  got = contrast(more, [0, 0, 1, 0], [True, True, True, False])
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_contrastive_prefers_separated_experts():
  apart = np.array([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]])
  mixed = apart[[0, 2, 1, 3]]
  experts = [0, 0, 1, 1]
  assert contrast(apart, experts) < contrast(mixed, experts)


def test_contrastive_is_finite_where_all_features_are_zero():
  value, grad = jax.value_and_grad(lambda x: contrast(x, [0, 0, 1, 1]))(
      np.zeros((4, 3), np.float32)
  )
  np.testing.assert_allclose(value, np.log(3), rtol=1e-5)
  np.testing.assert_array_equal(grad, np.zeros((4, 3)))


@pytest.mark.parametrize('rows', [8, 32, 64])
def test_contrasted_tokens_stand_at_all_places(rows):
  length = 16
  sample = moelora.spread(32, rows * length)
  assert len(set(sample)) == 32
  assert len(set(sample % length)) > 12
  assert len(set(sample // length)) > min(rows, 32) / 2
  assert sorted(moelora.spread(32, 20)) == list(range(20))


def test_contrastive_without_pairs():
  assert contrast(np.eye(2), [0, 1]) == 0
  assert contrast(np.eye(2), [0, 0], [False, False]) == 0


def test_consistency_is_the_symmetric_divergence():
  p, q = np.array([0.7, 0.3]), np.array([0.4, 0.6])
  logits, other = jnp.log(p)[None, None], jnp.log(q)[None, None]
  kl = lambda a, b: (a * np.log(a / b)).sum()
  want = 0.5 * (kl(p, q) + kl(q, p))
  got = adamix.consistency_loss(logits, other, None)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  assert adamix.consistency_loss(logits, logits, None) == 0
  padded = jnp.concatenate([other, 100 + other], axis=1)
  first = jnp.concatenate([logits, logits], axis=1)
  got = adamix.consistency_loss(first, padded, jnp.array([[True, False]]))
  np.testing.assert_allclose(got, want, rtol=1e-5)


def consistency_of(path, adapter, noise=0.0):
  """The loss that a network with AdaMix's rule sows while training."""
  rule = adamix.ConsistencyRule(path, adapter)
  model = inject.AdaptedModule(tiny_network.Network(), (rule,))
  tokens = tiny_network.tokens()
  params = jax.jit(model.init)(jax.random.key(0), *tokens)['params']
  params = jax.tree.map(
      lambda x: x + noise * jax.random.normal(jax.random.key(1), x.shape),
      params,
  )
  run = jax.jit(
      lambda params: model.apply(
          {'params': params},
          *tokens,
          rngs={'dropout': jax.random.key(0)},
          mutable=['intermediates'],
      )[1]
  )
  state = run(params)
  return losses.collect(state['intermediates'])['consistency_loss']


@pytest.mark.slow
def test_consistency_is_zero_without_randomness():
  adapter = functools.partial(molora.MoLoRA, num_experts=3, rank=2)
  np.testing.assert_allclose(consistency_of('.*/wo', adapter), 0, atol=1e-6)


def test_consistency_counts_the_tokens_that_the_model_says_are_real():
  ids = jnp.array([[3, 4, 0], [5, 0, 0]])

  class Network(nn.Module):

    @nn.compact
    def __call__(self, tokens, x):
      del tokens
      return nn.Dense(5, name='out')(x)

  rule = adamix.ConsistencyRule('out', adamix.AdaMix)
  model = inject.AdaptedModule(Network(), (rule,), tokens_lib.tokens_argument)
  x = jax.random.normal(jax.random.key(0), (2, 3, 4))
  params = jax.tree.map(
      lambda x: x + jax.random.normal(jax.random.key(1), x.shape),
      model.init(jax.random.key(1), ids, x)['params'],
  )

  @jax.jit
  def loss(x):
    _, state = model.apply(
        {'params': params}, ids, x, rngs={'dropout': jax.random.key(0)},
        mutable=['intermediates'],
    )
    return losses.collect(state['intermediates'])['consistency_loss']

  assert loss(x) > 0
  padded = jnp.where(ids[..., None] > 0, x, 100.0)
  np.testing.assert_allclose(loss(padded), loss(x), rtol=1e-5)


@pytest.mark.slow
def test_consistency_compares_two_draws():
  router = functools.partial(
      routing.Router, scores=adamix.NoScores(), select=adamix.RandomChoice(k=1)
  )
  adapter = functools.partial(mov.MoV, num_experts=3, router_factory=router)
  assert consistency_of('.*/act', adapter, noise=1.0) > 1e-3
