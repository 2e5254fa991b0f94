# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Means over the prompt in a decoder that stands alone (ours).

A token of the prompt gets the mean of the prompt up to itself, a token of the
answer that of the whole prompt. So no token sees a later one, an answer does
not change its own routing, and decoding step by step gives what one pass gives.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft.core import tokens as tokens_lib


def so_far(
    router: nn.Module, features: jax.Array, tokens: tokens_lib.Tokens
) -> jax.Array:
  """Means over the tokens of the prompt that each token sees.

  While decoding, sums are kept in the collection 'cache'.

  Args:
    router: The module that the sums belong to, in its compact method.
    features: <float32>[batch, length, n].
    tokens: Packing and prompt.

  Returns:
    <float32>[batch, length, n]; 0 where there is no prompt.

  Raises:
    errors.UserError: If nothing says which tokens are the prompt's.
  """
  # The sums of a column of ones count the tokens.
  features = jnp.pad(features, ((0, 0), (0, 0), (0, 1)), constant_values=1.0)
  if tokens.cached:
    sums = _decoded(router, features, tokens)
  elif tokens.in_prompt is None and not router.is_initializing():
    raise errors.UserError(
        'Scores of sequences read the prompt in a decoder, and the arguments '
        'of this model do not tell which tokens that is.',
        where='inject.AdaptedModule.describe_tokens',
        remedy='Call the model with in_prompt, bind it to a function whose '
        'tokens.Tokens have in_prompt, use a method that routes tokens, or '
        'restrict SITES to encoder layers.',
    )
  else:
    sums = _sums(features, tokens)
  return sums[..., :-1] / jnp.maximum(sums[..., -1:], 1.0)


def _sums(features: jax.Array, tokens: tokens_lib.Tokens) -> jax.Array:
  """Sums up to each token, within its packed example."""
  if tokens.in_prompt is not None:
    features *= tokens.in_prompt[..., None]
  length = features.shape[1]
  # A product, since sums along an axis are slow on accelerators.
  seen = jnp.tri(length, dtype=bool)
  if tokens.segment_ids is not None:
    ids = tokens.segment_ids
    seen = seen & (ids[:, :, None] == ids[:, None])
  return seen.astype(jnp.float32) @ features


def _decoded(
    router: nn.Module, features: jax.Array, tokens: tokens_lib.Tokens
) -> jax.Array:
  """Sums that go on from call to call.

  The first call makes room, one call may read prompts, and every other call
  reads one token. The first of those tokens is the last one of the prompt
  (`models/decoder_only.py`, and T5X).
  """
  rows, _, width = features.shape
  begun = router.has_variable('cache', 'prompt_sum')
  before = (1,) * _cache_offset(router)
  total = router.variable(
      'cache', 'prompt_sum', jnp.zeros, (*before, rows, width), jnp.float32
  )
  ended = router.variable(
      'cache', 'prompt_ended', jnp.zeros, (*before, rows), bool
  )
  if not begun:
    return features
  until = total.value.reshape(rows, 1, width)
  if tokens.in_prompt is not None:
    sums = until + _sums(features, tokens)
  else:
    sums = until + jnp.where(ended.value.reshape(rows, 1, 1), 0.0, features)
    ended.value = jnp.ones_like(ended.value)
  total.value = sums[:, -1].reshape(total.value.shape)
  return sums


def _cache_offset(router: nn.Module) -> int:
  """Axes before the rows in the cache, as T5X's decoding calls it.

  Decoding, ours and T5X's, takes the rows of all entries from one axis: in a
  model with a scan from the second, since layers are the first. What such a
  model has outside of its scan (`logits_dense`) needs that axis too. Inside of
  it no parent is the model, and the scan adds the axis.
  """
  module = router
  while isinstance(module, nn.Module):
    if getattr(module, 'scan_layers', False):
      return 1
    module = module.parent
  return 0
