# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Multi-head attention of T5 and of decoders, its masks and its cache.

T5 (arXiv 1910.10683) does not divide the logits by sqrt(head_dim); the factor
is in the initial query kernel. Decoders (decoder.py) multiply them, rotate
queries and keys by their positions, may norm both, may share keys and values
among heads, and may see a window of the row only.
"""

import functools
from typing import Any, NamedTuple

from flax import linen as nn
from flax.linen import partitioning as nn_partitioning
import jax
import jax.numpy as jnp

from moe_peft.models import dot_product
from moe_peft.models import layers
from moe_peft.models import rotary


class LayerPositions(NamedTuple):
  """What positions mean to a layer; to a stack, with a leading layer axis.

  They differ from layer to layer as numbers, so one compiled layer serves all.

  Attributes:
    frequencies: `<float32>[pairs]`, see `rotary.rotate`; 0: no positions.
    amplitude: `<float32>[]`, multiplies cosine and sine.
    window: `<int32>[]`, the last tokens that a query sees, its own included;
      None in models without windows.
  """

  frequencies: jax.Array
  amplitude: jax.Array
  window: jax.Array | None = None


def pair_mask(query: jax.Array, key: jax.Array) -> jax.Array:
  """Joins `<bool>[batch, q]` and `[batch, k]` to `[batch, 1, q, k]`."""
  return query[:, None, :, None] & key[:, None, None, :]


def segment_mask(query_ids: jax.Array, key_ids: jax.Array) -> jax.Array:
  """True where segment ids agree, `<bool>[batch, 1, q, k]`."""
  return query_ids[:, None, :, None] == key_ids[:, None, None, :]


def causal_mask(length: int) -> jax.Array:
  """True where the key is not after the query, `<bool>[1, 1, q, k]`."""
  return jnp.tril(jnp.ones((1, 1, length, length), bool))


def _within(window, positions, key_length, mask):
  """Adds a window to a mask; `positions` are the queries'.

  Keys have the positions of the queries, or, in a cache, those of its slots.
  """
  keys = positions
  if key_length != positions.shape[1]:
    keys = jnp.arange(key_length)[None]
  near = keys[:, None, None, :] > positions[:, None, :, None] - window
  return near if mask is None else mask & near


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
    logit_scale: Multiplies the logits; None: the initial query kernel is
      divided by `head_dim` instead, as in T5.
    softcap: Bound of the logits, see `dot_product.soft_cap`.
    biases: Which projections have a bias, letters of 'qkvo'.
    qk_norm: RMSNorm of queries and keys before they are rotated: 'none', 'head'
      (each head by itself) or 'joined' (all heads together).
    norm_epsilon: Epsilon of these norms.
    implementation: One of `dot_product.IMPLEMENTATIONS`.
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
  logit_scale: float | None = None
  softcap: float = 0.0
  biases: str = ''
  qk_norm: str = 'none'
  norm_epsilon: float = 1e-6
  implementation: str = 'auto'
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
      layer_positions: LayerPositions | None = None,
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
      positions: `<int32>[batch, q_length]`; None: 0, 1, 2 and so on, or what
        the cache counts.
      layer_positions: What positions mean here; None: nothing, as in T5.
      prefill_lengths: `<int32>[batch]`. The inputs are written to the beginning
        of the cache, and each row goes on at its own length: what the cache
        holds from there on is overwritten before it is seen.

    Returns:
      `[batch, q_length, embed]`.
    """
    kv_heads = self.num_kv_heads or self.num_heads
    # T5's query kernel starts smaller instead of dividing every logit.
    scale = 1.0 / self.head_dim if self.logit_scale is None else 1.0
    query = self._project('query', self.num_heads, scale)(inputs_q)
    key = self._project('key', kv_heads)(inputs_kv)
    value = self._project('value', kv_heads)(inputs_kv)
    query, key = self._norm('query', query), self._norm('key', key)
    names = ('batch', 'length', 'heads', 'kv')
    query, key, value = (
        nn_partitioning.with_sharding_constraint(x, names)
        for x in (query, key, value)
    )
    if layer_positions is not None:
      if positions is None:
        positions = self._next_positions(inputs_q.shape[1], prefill_lengths)
      turn = layer_positions[:2]
      query = rotary.rotate(query, positions, *turn)
      key = rotary.rotate(key, positions, *turn)
    if self.decode:
      key, value, mask, bias = self._use_cache(
          key, value, mask, bias, prefill_lengths
      )
    if layer_positions is not None and layer_positions.window is not None:
      mask = _within(layer_positions.window, positions, key.shape[1], mask)
    attended = self._attend(query, key, value, mask, bias)
    heads = ('joined_kv',) if self.joined_kernels else ('heads', 'kv')
    return layers.DenseGeneral(
        inputs_q.shape[-1],
        axis=(-2, -1),
        kernel_axes=(*heads, 'embed'),
        dtype=self.dtype,
        kernel_distribution='normal',
        use_bias='o' in self.biases,
        name='out',
    )(attended)

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
        use_bias=name[0] in self.biases,
        name=name,
    )

  def _norm(self, name: str, heads: jax.Array) -> jax.Array:
    """Norms queries or keys, `[batch, length, heads, head_dim]`."""
    if self.qk_norm == 'none':
      return heads
    joined = self.qk_norm == 'joined'
    normed = layers.LayerNorm(
        dtype=self.dtype,
        epsilon=self.norm_epsilon,
        logical_axis='joined_kv' if joined else 'kv',
        name=f'{name}_norm',
    )(heads.reshape(*heads.shape[:2], -1) if joined else heads)
    return normed.reshape(heads.shape)

  def _attend(self, query, key, value, mask, bias):
    """Returns `[batch, q_length, heads, head_dim]`."""
    keep = None
    if self.dropout_rate and not self.deterministic:
      ones = jnp.ones((query.shape[0], self.num_heads, 1, key.shape[1]))
      keep = layers.length_dropout(self.dropout_rate, False)(ones)
    options = dot_product.Options(
        self.dtype, self.implementation, self.logit_scale, self.softcap,
        self.float32_logits,
    )
    return dot_product.attend(query, key, value, mask, bias, keep, options)

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
