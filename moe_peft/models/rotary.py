# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Rotary positions (arXiv 2104.09864)."""

import jax
import jax.numpy as jnp


def rotate(
    inputs: jax.Array, positions: jax.Array, theta: float
) -> jax.Array:
  """Rotates pairs of features by angles that grow with the position.

  Feature i is paired with feature i + head_dim / 2, as in transformers; the
  paper, and GGUF files, pair 2i with 2i + 1. The two differ by a permutation of
  the rows of the query and key kernels.

  Args:
    inputs: `[batch, length, heads, head_dim]`, queries or keys.
    positions: `<int32>[batch or 1, length]`.
    theta: Pair i turns by `position * theta ** (-2 i / head_dim)`, in radians.

  Returns:
    The same shape and type; the arithmetic is float32.
  """
  half = inputs.shape[-1] // 2
  frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angles = positions[..., None, None].astype(jnp.float32) * frequencies
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  first, second = jnp.split(inputs.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate(
      [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
  return rotated.astype(inputs.dtype)
