# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Multi-head attention of T5 and LLaMA, its masks and its cache.

T5 (arXiv 1910.10683) does not divide the logits by sqrt(head_dim); the factor
is in the initial query kernel. LLaMA (arXiv 2302.13971) does, rotates queries
and keys by their positions, and may share keys and values among heads.
"""

import functools
from typing import Any

from flax import linen as nn
from flax.linen import partitioning as nn_partitioning
import jax
import jax.numpy as jnp

from moe_peft.models import layers
from moe_peft.models import rotary

# What a masked logit becomes; float32 softmax never needs a larger one.
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
    num_kv_heads: Heads of keys and values, a divisor of `num_heads`: as many
      queries share one (grouped-query attention, arXiv 2305.13245). None: each
      query has its own.
    scale_logits: Divides the logits by sqrt(head_dim).
    rope_theta: Base of the rotary positions; None: no positions here.
    dtype: Type of the arithmetic.
    deterministic: Switches dropout off.
    decode: Keeps keys and values in the collection 'cache' and takes one
      position per call. The first call, with inputs of the full length,
      allocates the cache; one with `prefill_lengths` fills its beginning.
  """

  num_heads: int
  head_dim: int
  joined_kernels: bool = True
  dropout_rate: float = 0.0
  float32_logits: bool = False
  num_kv_heads: int | None = None
  scale_logits: bool = False
  rope_theta: float | None = None
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
      positions: jax.Array | None = None,
      prefill_lengths: jax.Array | None = None,
  ) -> jax.Array:
    """Attends.

    Args:
      inputs_q: `[batch, q_length, embed]`.
      inputs_kv: `[batch, kv_length, embed]`.
      mask: `<bool>`, broadcastable to `[batch, heads, q_length, kv_length]`;
        True is visible. None: everything is visible.
      bias: Added to the logits, `[1, heads, q_length, kv_length]`; while
        decoding `[1, heads, cache_length, cache_length]`.
      positions: `<int32>[batch, q_length]` for `rope_theta`; None: 0, 1, 2 and
        so on, or what the cache counts.
      prefill_lengths: `<int32>[batch]`. The inputs are written to the beginning
        of the cache, and each row goes on at its own length: what the cache
        holds from there on is overwritten before it is seen.

    Returns:
      `[batch, q_length, embed]`.
    """
    kv_heads = self.num_kv_heads or self.num_heads
    # The query kernel starts smaller instead of dividing every logit.
    scale = 1.0 if self.scale_logits else 1.0 / self.head_dim
    query = self._project('query', self.num_heads, scale)(inputs_q)
    key = self._project('key', kv_heads)(inputs_kv)
    value = self._project('value', kv_heads)(inputs_kv)
    names = ('batch', 'length', 'heads', 'kv')
    query, key, value = (
        nn_partitioning.with_sharding_constraint(x, names)
        for x in (query, key, value)
    )
    if self.rope_theta is not None:
      if positions is None:
        positions = self._next_positions(inputs_q.shape[1], prefill_lengths)
      query = rotary.rotate(query, positions, self.rope_theta)
      key = rotary.rotate(key, positions, self.rope_theta)
    if self.decode:
      key, value, mask, bias = self._use_cache(
          key, value, mask, bias, prefill_lengths
      )
    weights = self._weights(query, key, mask, bias)
    # n: heads of keys and values; g: queries that share one.
    weights = weights.reshape(
        weights.shape[0], kv_heads, -1, *weights.shape[-2:]
    )
    attended = jnp.einsum('bngqk,bknd->bqngd', weights, value)
    heads = ('joined_kv',) if self.joined_kernels else ('heads', 'kv')
    return layers.DenseGeneral(
        inputs_q.shape[-1],
        axis=(-2, -1),
        kernel_axes=(*heads, 'embed'),
        dtype=self.dtype,
        kernel_distribution='normal',
        name='out',
    )(attended.reshape(query.shape))

  def _project(
      self, name: str, num_heads: int, scale: float = 1.0
  ) -> layers.DenseGeneral:
    heads = ('joined_kv',) if self.joined_kernels else ('heads', 'kv')
    return layers.DenseGeneral(
        (num_heads, self.head_dim),
        kernel_axes=('embed', *heads),
        dtype=self.dtype,
        kernel_scale=scale,
        kernel_distribution='normal',
        name=name,
    )

  def _weights(self, query, key, mask, bias):
    """Returns the attention weights `[batch, heads, q_length, kv_length]`."""
    if self.float32_logits:
      query, key = query.astype(jnp.float32), key.astype(jnp.float32)
    batch, length, heads, _ = query.shape
    query = query.reshape(batch, length, key.shape[-2], -1, self.head_dim)
    logits = jnp.einsum('bqngd,bknd->bngqk', query, key)
    logits = logits.reshape(batch, heads, length, -1)
    if self.scale_logits:
      logits = logits * self.head_dim**-0.5
    if bias is not None:
      logits = logits + bias.astype(logits.dtype)
    if mask is not None:
      # Where all of a row is masked, as in padding, -inf would make NaN.
      masked = max(MASKED_LOGIT, float(jnp.finfo(logits.dtype).min))
      logits = jnp.where(mask, logits, jnp.asarray(masked, logits.dtype))
    weights = jax.nn.softmax(logits).astype(self.dtype)
    return layers.length_dropout(self.dropout_rate, self.deterministic)(weights)

  def _next_positions(self, length, prefill_lengths):
    """Returns the positions of the inputs, `<int32>[batch or 1, length]`."""
    if (
        prefill_lengths is None
        and self.decode
        and self.has_variable('cache', 'cache_index')
    ):
      return self.get_variable('cache', 'cache_index').reshape(-1, 1)
    return jnp.arange(length)[None]

  def _use_cache(self, key, value, mask, bias, prefill_lengths):
    """Writes this position into the cache and attends to the ones so far.

    Cache entries are `[batch, heads, head_dim, cache_length]`, as in T5X, so
    that its decoding functions can expand and reorder them.
    """
    allocated = self.has_variable('cache', 'cached_key')
    entries = {'cached_key': key, 'cached_value': value}
    entries = {k: jnp.moveaxis(new, -3, -1) for k, new in entries.items()}
    cached = {
        name: self.variable('cache', name, jnp.zeros, new.shape, new.dtype)
        for name, new in entries.items()
    }
    cache_index = self.variable(
        'cache', 'cache_index', jnp.zeros, (), jnp.int32
    )
    if not allocated:
      return key, value, mask, bias
    length, index = cached['cached_key'].value.shape[-1], cache_index.value
    if prefill_lengths is not None:
      index = jnp.zeros((), jnp.int32)
    elif key.shape[1] != 1:
      raise ValueError(
          f'decoding takes one position per call, got {key.shape[1]}'
      )
    if bias is not None and bias.shape[-1] != length:
      raise ValueError(
          f'max_decode_length is {bias.shape[-1]} but the cache was made for'
          f' {length} positions'
      )
    write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=-1)
    if index.ndim:  # Rows that were prefilled stand at different positions.
      write = jax.vmap(write)
    for name, new in entries.items():
      cached[name].value = write(cached[name].value, new, index)
    if prefill_lengths is not None:
      cache_index.value = prefill_lengths
      return key, value, mask, bias
    cache_index.value = index + 1
    seen = jnp.arange(length) <= index.reshape(-1, 1, 1, 1)
    mask = seen if mask is None else mask & seen
    if bias is not None:
      bias = jax.lax.dynamic_slice_in_dim(bias, index, 1, axis=-2)
    key, value = (jnp.moveaxis(x.value, -1, -3) for x in cached.values())
    return key, value, mask, bias
