# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Thin products are the products they stand for, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np

from moe_peft.core import low_rank

FEATURES = jax.random.normal(jax.random.key(0), (2, 5, 8))
WEIGHTS = jax.random.normal(jax.random.key(1), (2, 5, 3))
KERNEL = jax.random.normal(jax.random.key(2), (8, 3))


def check(ours, theirs, *arguments):
  """Values and all gradients are equal, for a random cotangent."""
  value, backward = jax.vjp(ours, *arguments)
  expected, expected_backward = jax.vjp(theirs, *arguments)
  np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
  cotangent = jax.random.normal(jax.random.key(3), value.shape)
  for gradient, wanted in zip(
      backward(cotangent), expected_backward(cotangent), strict=True
  ):
    np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-6)


def test_project():
  check(
      lambda x, k: low_rank.project(x, low_rank.rows(k)),
      jnp.matmul, FEATURES, KERNEL,
  )


def test_expand():
  check(low_rank.expand, jnp.matmul, WEIGHTS, KERNEL.T)


def test_gradients_of_kernels_are_computed_as_rows():
  # The slow orientation would be a dot with a result of [8, 3].
  def loss(kernel):
    return jnp.sum(jnp.sin(low_rank.project(FEATURES, low_rank.rows(kernel))))

  text = jax.jit(jax.grad(loss)).lower(KERNEL).compile().as_text()
  dots = [line for line in text.splitlines() if ' dot(' in line]
  assert any('f32[3,8]' in line.split(' dot(')[0] for line in dots), dots
  assert not any('f32[8,3]' in line.split(' dot(')[0] for line in dots), dots
