# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""T5's multi-head attention (arXiv 1910.10683), its masks and its cache.

T5 does not divide the logits by sqrt(head_dim); the factor is in the initial
query kernel.
"""

from typing import Any

from flax import linen as nn
from flax.linen import partitioning as nn_partitioning
import jax
import jax.numpy as jnp

from moe_peft.models import layers

# Added in place of a masked logit; as large as float32 softmax ever needs.
MASKED_LOGIT = -1e10


def pair_mask(query: jax.Array, key: jax.Array) -> jax.Array:
  """Joins `<bool>[batch, q]` and `[batch, k]` to `[batch, 1, q, k]`."""
  return query[:, None, :, None] & key[:, None, None, :]


def segment_mask(query_ids: jax.Array, key_ids: jax.Array) -> jax.Array:
  """True where segment ids agree, `<bool>[batch, 1, q, k]`."""
  return query_ids[:, None, :, None] == key_ids[:, None, None, :]


def causal_mask(length: int) -> jax.Array:
  """True where the key is not after the query, `<bool>[1, 1, q, k]`."""
  return jnp.tril(jnp.ones((1, 1, length, length), bool))


class MultiHeadDotProductAttention(nn.Module):
  """Attention from `inputs_q` to `inputs_kv`.

  Attributes:
    num_heads: Number of heads.
    head_dim: Size of each head.
    joined_kernels: Two-dimensional kernels with all heads side by side, the
      layout of T5X's `t5`; otherwise `[embed, heads, kv]`, as `scalable_t5`.
    dropout_rate: Rate on the attention weights, broadcast over queries.
    float32_logits: Computes logits and softmax in float32 whatever `dtype`.
    dtype: Type of the arithmetic.
    deterministic: Switches dropout off.
    decode: Keeps keys and values in the collection 'cache' and takes one
      position per call. The first call, with inputs of the full length,
      allocates the cache.
  """

  num_heads: int
  head_dim: int
  joined_kernels: bool = True
  dropout_rate: float = 0.0
  float32_logits: bool = False
  dtype: Any = jnp.float32
  deterministic: bool = True
  decode: bool = False

  @nn.compact
  def __call__(
      self,
      inputs_q: jax.Array,
      inputs_kv: jax.Array,
      mask: jax.Array | None = None,
      bias: jax.Array | None = None,
  ) -> jax.Array:
    """Attends.

    Args:
      inputs_q: `[batch, q_length, embed]`.
      inputs_kv: `[batch, kv_length, embed]`.
      mask: `<bool>`, broadcastable to `[batch, heads, q_length, kv_length]`;
        True is visible. None: everything is visible.
      bias: Added to the logits, `[1, heads, q_length, kv_length]`; while
        decoding `[1, heads, cache_length, cache_length]`.

    Returns:
      `[batch, q_length, embed]`.
    """
    # The query kernel starts smaller instead of dividing every logit.
    query = self._project('query', 1.0 / self.head_dim)(inputs_q)
    key = self._project('key')(inputs_kv)
    value = self._project('value')(inputs_kv)
    names = ('batch', 'length', 'heads', 'kv')
    query, key, value = (
        nn_partitioning.with_sharding_constraint(x, names)
        for x in (query, key, value)
    )
    if self.decode:
      key, value, mask, bias = self._use_cache(key, value, mask, bias)
    weights = self._weights(query, key, mask, bias)
    attended = jnp.einsum('bhqk,bkhd->bqhd', weights, value)
    return layers.DenseGeneral(
        inputs_q.shape[-1],
        axis=(-2, -1),
        kernel_axes=(
            ('joined_kv', 'embed')
            if self.joined_kernels
            else ('heads', 'kv', 'embed')
        ),
        dtype=self.dtype,
        kernel_distribution='normal',
        name='out',
    )(attended)

  def _project(self, name: str, scale: float = 1.0) -> layers.DenseGeneral:
    return layers.DenseGeneral(
        (self.num_heads, self.head_dim),
        kernel_axes=(
            ('embed', 'joined_kv')
            if self.joined_kernels
            else ('embed', 'heads', 'kv')
        ),
        dtype=self.dtype,
        kernel_scale=scale,
        kernel_distribution='normal',
        name=name,
    )

  def _weights(self, query, key, mask, bias):
    """Returns the attention weights `[batch, heads, q_length, kv_length]`."""
    if self.float32_logits:
      query, key = query.astype(jnp.float32), key.astype(jnp.float32)
    logits = jnp.einsum('bqhd,bkhd->bhqk', query, key)
    if bias is not None:
      logits = logits + bias.astype(logits.dtype)
    if mask is not None:
      logits = jnp.where(mask, logits, jnp.asarray(MASKED_LOGIT, logits.dtype))
    weights = jax.nn.softmax(logits).astype(self.dtype)
    return layers.length_dropout(self.dropout_rate, self.deterministic)(weights)

  def _use_cache(self, key, value, mask, bias):
    """Writes this position into the cache and attends to the ones so far.

    Cache entries are `[batch, heads, head_dim, cache_length]`, as in T5X, so
    that its decoding functions can expand and reorder them.
    """
    allocated = self.has_variable('cache', 'cached_key')

    def entry(x):
      return jnp.moveaxis(x, -3, -1)

    cached_key = self.variable(
        'cache', 'cached_key', jnp.zeros, entry(key).shape, key.dtype
    )
    cached_value = self.variable(
        'cache', 'cached_value', jnp.zeros, entry(value).shape, value.dtype
    )
    cache_index = self.variable(
        'cache', 'cache_index', jnp.zeros, (), jnp.int32
    )
    if not allocated:
      return key, value, mask, bias
    length, index = cached_key.value.shape[-1], cache_index.value
    if key.shape[1] != 1:
      raise ValueError(
          f'decoding takes one position per call, got {key.shape[1]}'
      )
    if bias is not None and bias.shape[-1] != length:
      raise ValueError(
          f'max_decode_length is {bias.shape[-1]} but the cache was made for'
          f' {length} positions'
      )
    for cached, new in ((cached_key, key), (cached_value, value)):
      cached.value = jax.lax.dynamic_update_slice_in_dim(
          cached.value, entry(new), index, axis=-1
      )
    cache_index.value = index + 1
    seen = (jnp.arange(length) <= index)[None, None, None, :]
    mask = seen if mask is None else mask & seen
    if bias is not None:
      bias = jax.lax.dynamic_slice_in_dim(bias, index, 1, axis=-2)
    key = jnp.moveaxis(cached_key.value, -1, -3)
    value = jnp.moveaxis(cached_value.value, -1, -3)
    return key, value, mask, bias
