# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Losses on small arrays, and their sum over sites."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import capacity
from moe_peft.core import losses
from tests.refusals import refused

VALID = jnp.array([[True, True, False]])


def test_load_balance_by_hand():
  probs = jnp.array([[[0.5, 0.5, 0.0], [0.2, 0.0, 0.8], [9.0, 9.0, 9.0]]])
  load = jnp.array([[[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [9.0, 9.0, 9.0]]])
  # Loads 1/2 each, mean probabilities 0.35, 0.25, 0.4.
  got = losses.load_balancing_loss(probs, load, VALID)
  np.testing.assert_allclose(got, 3 * 0.5 * (0.35 + 0.25 + 0.4), rtol=1e-6)


@pytest.mark.parametrize('k', [1, 2])
def test_a_balanced_selection_of_k_has_loss_k(k):
  load = jnp.stack([jnp.roll(jnp.arange(4) < k, i) for i in range(4)])[None]
  probs = jnp.full((1, 4, 4), 0.25)
  got = losses.load_balancing_loss(
      probs, load.astype(jnp.float32), jnp.ones((1, 4), bool)
  )
  np.testing.assert_allclose(got, k, rtol=1e-6)


def test_no_gradient_through_the_load():
  grad = jax.grad(losses.load_balancing_loss, argnums=(0, 1))
  probs, load = jnp.full((1, 3, 2), 0.5), jnp.ones((1, 3, 2))
  by_probs, by_load = grad(probs, load, VALID)
  np.testing.assert_allclose(by_probs[0, :2], 2 * 1 / 2, rtol=1e-6)
  assert np.abs(by_load).max() == 0 and np.abs(by_probs[0, 2]).max() == 0


def test_collect_weighs_scanned_layers_like_sites():
  one = jnp.full((1, 1, 1), 6.0)
  stack = jnp.arange(3.0).reshape(1, 3, 1)  # A layer axis in the middle.
  sown = {
      'encoder': {'wo': {'adapter': {'auxiliary_loss': (one,)}}},
      'decoder': {'auxiliary_loss': (stack,), 'other': (one,)},
      'wo': {'a_new_loss': (one,)},
  }
  metrics = losses.collect(sown)
  assert set(metrics) == {'auxiliary_loss', 'a_new_loss'}
  np.testing.assert_allclose(metrics['auxiliary_loss'], (6 + 0 + 1 + 2) / 4)


def test_total():
  metrics = {'auxiliary_loss': jnp.array(2.0), 'router_z_loss': jnp.array(3.0)}
  factors = {'auxiliary_loss': 0.5, 'router_z_loss': 0.0, 'none_such': 0.0}
  np.testing.assert_allclose(losses.total(metrics, factors), 1.0)
  with refused('LOSS_FACTORS', 'contrastive_loss'):
    losses.total(metrics, {'contrastive_loss': 0.1})


def _routed(probs, load, valid, group_size):
  groups = capacity.Groups(valid.size // group_size, group_size, valid.shape[1])
  return losses.Routed(probs, probs, load, valid, groups)


def test_balance_of_groups_by_hand():
  """Two halves that use one expert each are balanced only together."""
  probs = jax.nn.one_hot(jnp.array([[0, 0, 1, 1]]), 2)
  valid = jnp.ones((1, 4), bool)
  balance = losses.LoadBalance(per_group=True)
  for size, expected in ((4, 1.0), (2, 2.0), (1, 2.0)):
    got = balance(_routed(probs, probs, valid, size))
    np.testing.assert_allclose(got, expected)
  # A group of padding alone counts in no mean.
  got = balance(_routed(probs, probs, jnp.array([[1, 1, 0, 0]], bool), 2))
  np.testing.assert_allclose(got, 2.0)


@pytest.mark.slow
@pytest.mark.t5x
@pytest.mark.parametrize('k', [1, 2])
def test_balance_of_groups_is_flaxformers(k):
  theirs = pytest.importorskip('flaxformer.architectures.moe.routing')
  probs = jax.nn.softmax(jax.random.normal(jax.random.key(0), (6, 8, 5)))
  indices = jax.lax.top_k(probs, k)[1]
  load = jax.nn.one_hot(indices, 5).sum(axis=-2)
  got = losses.LoadBalance(per_group=True)(
      _routed(probs, load, jnp.ones((6, 8), bool), 8)
  )
  expected = theirs._load_balancing_loss(probs, indices)
  np.testing.assert_allclose(got, expected, rtol=1e-6)
  of_batch = losses.LoadBalance()(
      _routed(probs, load, jnp.ones((6, 8), bool), 8)
  )
  assert abs(of_batch - expected) > 0.01 * expected
