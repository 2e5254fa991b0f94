# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Greedy decoding and temperature sampling with a cache.

This and beam_search.py take `tokens_to_logits(ids, cache) -> (logits, cache)`,
with `ids` `<int32>[rows, 1]`, `logits` `<float32>[rows, vocab]` and `cache` a
tree of arrays, and can be jitted. The id 0 pads a sequence, and starts it
unless `start_tokens` are given: the last tokens of prompts that the cache
holds.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import io_callback
import jax.numpy as jnp

from moe_peft import errors

Cache = Any
TokensToLogits = Callable[[jax.Array, Cache], tuple[jax.Array, Cache]]
Watch = Callable[[jax.Array], jax.Array]


class _Sequences(NamedTuple):
  index: jax.Array  # Position to be written next.
  tokens: jax.Array  # <int32>[batch, max_decode_length]
  finished: jax.Array  # <bool>[batch]
  cache: Cache


def sample(
    tokens_to_logits: TokensToLogits,
    cache: Cache,
    *,
    batch_size: int,
    max_decode_length: int,
    eos_id: int | Sequence[int] = 1,
    start_tokens: jax.Array | int = 0,
    temperature: float = 0.0,
    rng: jax.Array | None = None,
    watch: Watch | None = None,
) -> jax.Array:
  """Draws every token from the model's distribution, or takes the best one.

  Args:
    tokens_to_logits: One step of the model, see the module's docstring.
    cache: An empty cache for `batch_size` rows.
    batch_size: Number of sequences.
    max_decode_length: Number of tokens to generate at most.
    eos_id: The id, or the ids, that end a sequence.
    start_tokens: What the model reads first, `<int32>[batch]` or one for all.
    temperature: Divides the logits; 0 takes the most probable token.
    rng: Random key, for a temperature above 0; the same key gives the same
      sequences.
    watch: Called on the host with the tokens of each step, `<int32>[batch]`;
      all sequences end where it returns true.

  Returns:
    `<int32>[batch, max_decode_length]`, the end-of-sequence id included and
    zeros after it.

  Raises:
    errors.UserError: If the temperature is negative, or above 0 without `rng`.
  """
  if temperature < 0 or (temperature and rng is None):
    raise errors.UserError(
        f'The temperature must be 0, or above 0 with a random key, not '
        f'{temperature}.', 'temperature',
    )

  def unfinished(state):
    return (state.index < max_decode_length) & ~jnp.all(state.finished)

  def step(state):
    ids = last_token(state.tokens, state.index, start_tokens)
    logits, new_cache = tokens_to_logits(ids, state.cache)
    if temperature:
      key = jax.random.fold_in(rng, state.index)
      token = jax.random.categorical(key, logits / temperature)
    else:
      token = jnp.argmax(logits, axis=-1)
    token = jnp.where(state.finished, 0, token)
    finished = state.finished | is_end(token, eos_id)
    if watch is not None:  # Steps wait for its answer, so they stay in order.
      stop = jax.ShapeDtypeStruct((), bool)
      finished |= io_callback(watch, stop, token)
    return _Sequences(
        index=state.index + 1,
        tokens=state.tokens.at[:, state.index].set(token),
        finished=finished,
        cache=new_cache,
    )

  start = _Sequences(
      index=jnp.zeros((), jnp.int32),
      tokens=jnp.zeros((batch_size, max_decode_length), jnp.int32),
      finished=jnp.zeros((batch_size,), bool),
      cache=cache,
  )
  return jax.lax.while_loop(unfinished, step, start).tokens


def is_end(
    tokens: jax.Array, eos_id: int | Sequence[int]
) -> jax.Array:
  """Whether tokens end their sequences, <bool> of their shape."""
  return jnp.isin(tokens, jnp.asarray(eos_id, jnp.int32))


def last_token(
    tokens: jax.Array, index: jax.Array, start_tokens: jax.Array | int
) -> jax.Array:
  """Returns the token before `index`, or the start token, `[rows, 1]`."""
  tokens = tokens.reshape(-1, tokens.shape[-1])
  last = jnp.take(tokens, jnp.maximum(index - 1, 0), axis=-1)
  return jnp.where(index == 0, start_tokens, last)[:, None]
