# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""T5's attention bias by relative position (arXiv 1910.10683, section 2.1)."""

from typing import Any

from flax import linen as nn
from flax.linen import partitioning as nn_partitioning
import jax
import jax.numpy as jnp
import numpy as np


class RelativePositionBiases(nn.Module):
  """A learned bias for each head and bucket of distances.

  Attributes:
    num_heads: Number of attention heads.
    num_buckets: Number of buckets, over both directions if bidirectional.
    max_distance: Distances from here on share the last bucket.
    dtype: Type of the result.
  """

  num_heads: int
  num_buckets: int = 32
  max_distance: int = 128
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, length: int, bidirectional: bool) -> jax.Array:
    """Returns the bias `[1, heads, length, length]` (query, key)."""
    rel_embedding = nn_partitioning.param_with_axes(
        'rel_embedding',
        nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform'),
        (self.num_heads, self.num_buckets),
        jnp.float32,
        axes=('heads', 'relpos_buckets'),
        module=self,
    )
    first, last = bucket_ranges(
        length, bidirectional, self.num_buckets, self.max_distance
    )
    positions = jnp.arange(length)
    distances = (positions[None, :] - positions[:, None])[..., None]
    # A product with one-hot rows: the gradient of a lookup would be a scatter,
    # which is slow on TPUs.
    one_hot = (first <= distances) & (distances <= last)
    one_hot = one_hot.astype(self.dtype)
    rel_embedding = jnp.asarray(rel_embedding, self.dtype)
    return jnp.einsum('hn,qkn->hqk', rel_embedding, one_hot)[None]


def bucket_ranges(
    length: int, bidirectional: bool, num_buckets: int, max_distance: int
) -> tuple[np.ndarray, np.ndarray]:
  """Which relative positions share each bucket of `relative_position_bucket`.

  So no array of `[length, length]` is made while a program is traced.

  Args:
    length: Length of a row.
    bidirectional: As in `relative_position_bucket`.
    num_buckets: As in `relative_position_bucket`.
    max_distance: As in `relative_position_bucket`.

  Returns:
    The first and the last relative position of each bucket, `<int32>[buckets]`.
  """
  far = min(length, max_distance)  # From there on the bucket stays.
  positions = np.arange(-far, far + 1)
  buckets = relative_position_bucket(
      positions, bidirectional, num_buckets, max_distance
  )
  first = np.full(num_buckets, length, np.int32)
  last = np.full(num_buckets, -length, np.int32)
  np.minimum.at(first, buckets, positions)
  np.maximum.at(last, buckets, positions)
  first[buckets[0]], last[buckets[-1]] = -length, length
  return first, last


def relative_position_bucket(
    relative_position: np.ndarray,
    bidirectional: bool,
    num_buckets: int,
    max_distance: int,
) -> np.ndarray:
  """Returns the bucket of each distance.

  Half of the buckets hold one distance each, the other half grow
  logarithmically up to `max_distance`. If `bidirectional`, keys after the
  query have their own half; otherwise they count as distance 0.

  Args:
    relative_position: `<int>[...]`, key position minus query position.
    bidirectional: Whether keys after the query are visible.
    num_buckets: Number of buckets.
    max_distance: Distances from here on share the last bucket.

  Returns:
    `<int32>[...]`, at least 0 and below `num_buckets`.
  """
  offset = np.zeros_like(relative_position)
  if bidirectional:
    num_buckets //= 2
    offset = np.where(relative_position > 0, num_buckets, 0)
    distance = np.abs(relative_position)
  else:
    distance = np.maximum(-relative_position, 0)
  num_exact = num_buckets // 2
  # The small term keeps exact powers on the upper side of their boundary.
  growth = np.log(np.maximum(distance, 1) / num_exact + 1e-7) / np.log(
      max_distance / num_exact
  )
  logarithmic = num_exact + (growth * (num_buckets - num_exact)).astype(int)
  bucket = np.where(
      distance < num_exact,
      distance,
      np.minimum(logarithmic, num_buckets - 1),
  )
  return (offset + bucket).astype(np.int32)
