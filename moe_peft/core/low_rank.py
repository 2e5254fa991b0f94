# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Low-rank kernels and products with thin matrices.

Routers, low ranks and vectors are thin: they are kept as rows `<float>[n,
features]`, n small. A dense product whose result has few columns is slow on
CPUs: the gradient of a kernel [1024, 10] over 2,048 tokens takes 17 times as
long as that of its transpose [10, 1024]. And XLA's CPU compiler makes better
products of [tokens, features] than of [batch, length, features]. Kept as rows,
neither direction is slow; `python -m benchmarks` measures whole layers.
"""

from collections.abc import Callable
from typing import Protocol

from flax import linen as nn
import jax


def within_root(fan_axis: int) -> Callable[..., jax.Array]:
  """Uniform within 1 / sqrt(size of an axis): torch's Kaiming with sqrt(5)."""

  def init(key, shape, dtype):
    bound = shape[fan_axis] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


# As in the released code of MoLoRA (2309.05444).
INIT_A = nn.initializers.normal(stddev=2e-2)


class _Adapter(Protocol):
  """What `lora_kernels` needs of a module: sizes and a maker of parameters."""

  num_experts: int
  rank: int
  param_with_axes: Callable[..., jax.Array]


def lora_kernels(
    adapter: _Adapter,
    in_features: int,
    out_features: int,
    axes: tuple[str, str],
    *,
    num_a: int | None = None,
    num_b: int | None = None,
    prefix: str = '',
    init_a: Callable[..., jax.Array] = INIT_A,
) -> tuple[jax.Array, jax.Array]:
  """Makes the kernels of LoRA experts (arXiv 2106.09685), identity at first.

  `lora_b` is zero.

  Args:
    adapter: The module that they belong to.
    in_features: Features of the layer's inputs.
    out_features: Features of its outputs.
    axes: Logical names of both.
    num_a: Experts of `lora_a`; 1 if all share it. By default all.
    num_b: Experts of `lora_b`.
    prefix: Prefix of the names of the parameters.
    init_a: Initial values of `lora_a`.

  Returns:
    `lora_a` <float32>[num_a, in, rank] and `lora_b` <float32>[num_b, rank,
    out].
  """
  in_axis, out_axis = axes
  num_a, num_b = num_a or adapter.num_experts, num_b or adapter.num_experts
  lora_a = adapter.param_with_axes(
      f'{prefix}lora_a',
      init_a,
      (num_a, in_features, adapter.rank),
      ('expert', in_axis, 'rank'),
  )
  lora_b = adapter.param_with_axes(
      f'{prefix}lora_b',
      nn.initializers.zeros,
      (num_b, adapter.rank, out_features),
      ('expert', 'rank', out_axis),
  )
  return lora_a, lora_b


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
