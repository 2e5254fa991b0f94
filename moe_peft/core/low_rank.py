# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Products with thin matrices, kept as rows `<float>[n, features]`, n small.

Routers, low ranks and vectors are thin. A dense product whose result has few
columns is slow on CPUs: the gradient of a kernel [1024, 10] over 2,048 tokens
takes 17 times as long as that of its transpose [10, 1024]. And XLA's CPU
compiler makes better products of [tokens, features] than of [batch, length,
features]. Kept as rows, neither direction is slow; python -m benchmarks shows
the whole.
"""

import jax


def rows(kernel: jax.Array) -> jax.Array:
  """Returns <float>[n, features], the transpose of a kernel [features, n].

  The barrier keeps XLA from moving the transposition into the gradient, which
  would then be computed as [features, n] after all.
  """
  return jax.lax.optimization_barrier(kernel.T)


def project(features: jax.Array, matrix: jax.Array) -> jax.Array:
  """Returns <float>[..., n], the products of features with each row.

  Args:
    features: <float>[..., features].
    matrix: <float>[n, features].
  """
  flat = features.reshape(-1, features.shape[-1])
  product = jax.lax.dot_general(flat, matrix, (((1,), (1,)), ((), ())))
  return product.reshape(*features.shape[:-1], matrix.shape[0])


def expand(weights: jax.Array, matrix: jax.Array) -> jax.Array:
  """Returns <float>[..., features], the weighted sums of rows.

  Args:
    weights: <float>[..., n].
    matrix: <float>[n, features].
  """
  flat = weights.reshape(-1, weights.shape[-1])
  return (flat @ matrix).reshape(*weights.shape[:-1], matrix.shape[1])
