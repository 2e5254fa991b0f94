# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Dot-product attention: one meaning, run in three ways.

`plain` keeps the probabilities of every query and key for the backward pass.
`chunked` takes some of the queries at a time and makes their probabilities
again, on any device. `fused` is cuDNN's kernel of `jax.nn`, on NVIDIA's GPUs.
`auto` is `chunked` where probabilities are large, else `plain`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft.models import parts

IMPLEMENTATIONS = ('auto', 'plain', 'chunked', 'fused')

# Probabilities that a device makes at a time, and how many of a layer it keeps.
PART, MOST = 2**22, 2**25
# Fewer queries at a time would make products too thin for matrix units, however
# many rows there are.
LEAST_QUERIES = 16

# What a masked logit becomes; float32 softmax never needs a larger one.
MASKED_LOGIT = -1e10

_FUSED = 'cudnn'


@dataclasses.dataclass(frozen=True)
class Options:
  """How attention is computed, whatever the tokens are.

  Attributes:
    dtype: Type of the result.
    implementation: One of `IMPLEMENTATIONS`.
    scale: Multiplies the logits; None: 1.
    softcap: Bound of the logits, see `soft_cap`.
    float32_logits: Computes logits and softmax in float32 whatever `dtype`.
  """

  dtype: Any
  implementation: str = 'auto'
  scale: float | None = None
  softcap: float = 0.0
  float32_logits: bool = False


def soft_cap(logits: jax.Array, cap: float) -> jax.Array:
  """Bounds logits by tanh (arXiv 2408.00118, section 2); 0: no bound."""
  return cap * jnp.tanh(logits / cap) if cap else logits


def choose(implementation: str, probabilities: int) -> str:
  """The implementation that runs; 'auto' depends on the size.

  Args:
    implementation: One of `IMPLEMENTATIONS`.
    probabilities: Batch * heads * queries * keys, on all devices.
  """
  if implementation != 'auto':
    return implementation
  return 'chunked' if parts.on_a_device(probabilities) > MOST else 'plain'


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    bias: jax.Array | None,
    keep: jax.Array | None,
    options: Options,
) -> jax.Array:
  """Attends.

  Args:
    query: `[batch, q, heads, head_dim]`.
    key: `[batch, k, kv_heads, head_dim]`; as many queries share a head of keys.
    value: The same.
    mask: `<bool>`, broadcastable to `[batch, heads, q, k]`, or None.
    bias: Added to the logits, `[1, heads, q, k]`, or None.
    keep: Multiplies probabilities, `<float32>[batch, heads, 1, k]`: dropout,
      of which all queries have the same; or None.
    options: How attention is computed.

  Returns:
    `[batch, q, heads, head_dim]`.

  Raises:
    errors.UserError: For 'fused' where there is no such kernel.
  """
  batch, length, heads, _ = query.shape
  probabilities = batch * heads * length * key.shape[1]
  chosen = choose(options.implementation, probabilities)
  if chosen == 'fused':
    return _fused(query, key, value, mask, bias, keep, options)
  # What all queries share is not cut.
  cut = {'mask': mask, 'bias': bias}
  cut = {k: x for k, x in cut.items() if x is not None and x.shape[2] == length}
  whole = {'mask': mask, 'bias': bias} | dict.fromkeys(cut)

  def some(query, *arrays):
    of_queries = whole | dict(zip(cut, arrays, strict=True))
    return _plain(query, key, value, **of_queries, keep=keep, options=options)

  if chosen == 'plain' or length == 1:
    return some(query, *cut.values())
  num_parts = min(
      -(-parts.on_a_device(probabilities) // PART),
      -(-length // LEAST_QUERIES),
  )
  return parts.run(
      some, length, num_parts, (query, 1), *((x, 2) for x in cut.values())
  )


def _plain(query, key, value, mask, bias, keep, options):
  """Attends with the probabilities of all queries at once."""
  dtype = jnp.float32 if options.float32_logits else query.dtype
  batch, length, heads, head_dim = query.shape
  # n: heads of keys and values; g: queries that share one.
  grouped = query.reshape(batch, length, key.shape[-2], -1, head_dim)
  logits = jnp.einsum(
      'bqngd,bknd->bngqk', grouped.astype(dtype), key.astype(dtype)
  ).reshape(batch, heads, length, -1)
  if options.scale is not None:
    logits = logits * options.scale
  logits = soft_cap(logits, options.softcap)
  if bias is not None:
    logits = logits + bias.astype(logits.dtype)
  if mask is not None:
    # Where all of a row is masked, as in padding, -inf would make NaN.
    masked = max(MASKED_LOGIT, float(jnp.finfo(logits.dtype).min))
    logits = jnp.where(mask, logits, jnp.asarray(masked, logits.dtype))
  weights = jax.nn.softmax(logits)
  if keep is not None:
    weights = weights * keep
  weights = weights.astype(options.dtype)
  weights = weights.reshape(batch, key.shape[-2], -1, *weights.shape[-2:])
  attended = jnp.einsum('bngqk,bknd->bqngd', weights, value)
  return attended.reshape(query.shape)


def _fused(query, key, value, mask, bias, keep, options):
  """Attends by the kernel of the backend."""
  refusal = {
      'It runs on GPUs.': _FUSED == 'cudnn' and jax.default_backend() != 'gpu',
      'It has no bound of logits.': options.softcap,
      'It has no dropout that all queries share.': keep is not None,
      'It has no float32.': _FUSED == 'cudnn' and query.dtype == jnp.float32,
  }
  if why := ' '.join(text for text, true in refusal.items() if true):
    raise errors.UserError(
        f'Attention cannot be fused here. {why}',
        where='ATTENTION',
        remedy="Leave it at 'auto'.",
    )
  scale = 1.0 if options.scale is None else options.scale
  attended = jax.nn.dot_product_attention(
      query, key, value,
      bias=None if bias is None else bias.astype(query.dtype), mask=mask,
      scale=scale, implementation=_FUSED,
  )
  return attended.astype(options.dtype)
