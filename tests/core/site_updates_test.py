# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Transformations of optimizers that see an adapter's arrays together."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_peft.core import site_updates
from moe_peft.core import trainable
from tests.refusals import refused

SITE = 'encoder/layers_0/mlp/wo/adapter/'


def params(experts=2, layers=()):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return {
      SITE + 'lora_a': draw(experts, *layers, 5, 3),
      SITE + 'lora_b': draw(experts, *layers, 3, 4),
      SITE + 'router/kernel': draw(5, experts),
  }


def test_every_adapter_is_seen_alone():
  seen = []

  def change(updates, now):
    seen.append(sorted(updates))
    return {'lora_a': now['lora_a']}

  tree = {**params(), 'decoder/mlp/wo/adapter/lora_a': jnp.ones(2),
          'encoder/norm/scale': jnp.ones(3)}
  transform = site_updates.of_each_adapter(change)
  zeros = jax.tree.map(jnp.zeros_like, tree)
  flat, state = transform.update(zeros, transform.init(tree), tree)
  nested, _ = transform.update(
      trainable.unflatten(zeros), state, trainable.unflatten(tree)
  )
  assert seen[:2] == [['lora_a'], ['lora_a', 'lora_b', 'router/kernel']]
  assert not jax.tree.leaves(state)
  for name, value in trainable.flatten(nested).items():
    np.testing.assert_array_equal(value, flat[name])
    moved = name.endswith('lora_a')
    np.testing.assert_array_equal(value, tree[name] if moved else zeros[name])


def test_lora_plus_is_a_rate_of_lora_b():
  tree = params()
  grads = jax.tree.map(jnp.sin, tree)
  rate, adamw = 0.1, lambda rate: optax.adamw(rate, weight_decay=0.3)
  want = trainable.by_path((
      ('.*/lora_b', adamw(16 * rate)), ('.*', adamw(rate)),
  ))
  got = trainable.by_path(
      (('.*', adamw(rate)),), updates=site_updates.faster_b(16.0)
  )
  want, _ = want.update(grads, want.init(tree), tree)
  got, _ = got.update(grads, got.init(tree), tree)
  for name, value in want.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-6)


@pytest.mark.parametrize('layers', [(), (2,)], ids=['unrolled', 'scanned'])
def test_riemannian_by_hand(layers):
  tree = params(layers=layers)
  grads = jax.tree.map(jnp.cos, tree)
  transform = site_updates.riemannian(damping=0.1)
  got, _ = transform.update(grads, transform.init(tree), tree)
  index = (1, *(0 for _ in layers))
  take = lambda tree, name: np.asarray(tree[SITE + name], np.float64)[index]
  a, b = take(tree, 'lora_a'), take(tree, 'lora_b')
  inverse = lambda gram: np.linalg.inv(
      gram + 0.1 * np.trace(gram) / 3 * np.eye(3)
  )
  np.testing.assert_allclose(
      take(got, 'lora_a'), take(grads, 'lora_a') @ inverse(b @ b.T), rtol=1e-3
  )
  np.testing.assert_allclose(
      take(got, 'lora_b'), inverse(a.T @ a) @ take(grads, 'lora_b'), rtol=1e-3
  )
  np.testing.assert_array_equal(
      got[SITE + 'router/kernel'], grads[SITE + 'router/kernel']
  )


def test_riemannian_at_the_first_step():
  tree = params()
  tree[SITE + 'lora_b'] *= 0
  grads = {**tree, SITE + 'lora_a': tree[SITE + 'lora_a'] * 0}
  transform = site_updates.riemannian()
  got, _ = transform.update(grads, transform.init(tree), tree)
  assert all(np.isfinite(x).all() for x in got.values())
  assert not np.any(got[SITE + 'lora_a'])


@pytest.mark.slow
def test_riemannian_refuses_shared_factors():
  tree = params()
  tree[SITE + 'lora_a'] = tree[SITE + 'lora_a'][:1]
  transform = site_updates.riemannian()
  with refused('trainable.by_path.gradients'):
    transform.update(tree, transform.init(tree), tree)
