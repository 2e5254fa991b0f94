# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Greedy decoding, temperature sampling and beam search with a cache.

Every function takes `tokens_to_logits(ids, cache) -> (logits, cache)`, with
`ids` `<int32>[rows, 1]`, `logits` `<float32>[rows, vocab]` and `cache` a tree
of arrays, and can be jitted. Token 0 pads a sequence, and starts it unless
`start_tokens` are given: the last tokens of prompts that the cache holds.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from moe_peft import errors

Cache = Any
TokensToLogits = Callable[[jax.Array, Cache], tuple[jax.Array, Cache]]


class Decoded(NamedTuple):
  """Generated sequences.

  Attributes:
    tokens: `<int32>[batch, max_decode_length]`, the end-of-sequence id
      included and zeros after it; `[batch, num_beams, ...]` from beam search.
    scores: `<float32>[batch]`, log-likelihood in nats under the model; from
      beam search `[batch, num_beams]`, divided by the length penalty.
  """

  tokens: jax.Array
  scores: jax.Array


class _Sequences(NamedTuple):
  index: jax.Array  # Position to be written next.
  tokens: jax.Array  # <int32>[batch, max_decode_length]
  scores: jax.Array  # <float32>[batch]
  finished: jax.Array  # <bool>[batch]
  cache: Cache


def greedy(
    tokens_to_logits: TokensToLogits,
    cache: Cache,
    *,
    batch_size: int,
    max_decode_length: int,
    eos_id: int = 1,
    start_tokens: jax.Array | int = 0,
) -> Decoded:
  """Takes the most probable token at every position.

  Args:
    tokens_to_logits: One step of the model, see the module's docstring.
    cache: An empty cache for `batch_size` rows.
    batch_size: Number of sequences.
    max_decode_length: Number of tokens to generate at most.
    eos_id: The id that ends a sequence.
    start_tokens: What the model reads first, `<int32>[batch]` or one for all.

  Returns:
    One sequence per row.
  """

  def choose(logits, index):
    del index
    return jnp.argmax(logits, axis=-1)

  return _generate(
      tokens_to_logits,
      cache,
      batch_size,
      max_decode_length,
      eos_id,
      start_tokens,
      choose,
  )


def temperature_sample(
    tokens_to_logits: TokensToLogits,
    cache: Cache,
    *,
    batch_size: int,
    max_decode_length: int,
    rng: jax.Array,
    eos_id: int = 1,
    start_tokens: jax.Array | int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Decoded:
  """Draws every token from the model's distribution.

  Args:
    tokens_to_logits: One step of the model, see the module's docstring.
    cache: An empty cache for `batch_size` rows.
    batch_size: Number of sequences.
    max_decode_length: Number of tokens to generate at most.
    rng: Random key; the same key gives the same sequences.
    eos_id: The id that ends a sequence.
    start_tokens: What the model reads first, `<int32>[batch]` or one for all.
    temperature: Divides the logits; above 0.
    top_k: Draw from the `top_k` most probable tokens only; 0 for all.
    top_p: Draw from the smallest set of tokens that holds this probability
      (arXiv 1904.09751, section 3.1), after temperature and `top_k`.

  Returns:
    One sequence per row; the scores are those of the model itself, without
    temperature and restrictions.

  Raises:
    errors.UserError: If an option is out of its range.
  """
  if temperature <= 0:
    raise errors.UserError(
        f'temperature must be above 0, got {temperature}; use '
        'decoding.greedy for the most probable token.'
    )
  if top_k < 0 or not 0 < top_p <= 1:
    raise errors.UserError(
        f'top_k must be at least 0 and top_p above 0 and at most 1, got '
        f'{top_k} and {top_p}.'
    )

  def choose(logits, index):
    logits = _restrict(logits / temperature, top_k, top_p)
    return jax.random.categorical(jax.random.fold_in(rng, index), logits)

  return _generate(
      tokens_to_logits,
      cache,
      batch_size,
      max_decode_length,
      eos_id,
      start_tokens,
      choose,
  )


def _restrict(logits, top_k, top_p):
  """Sets the logits outside `top_k` and `top_p` to minus infinity."""
  if 0 < top_k < logits.shape[-1]:
    lowest = jax.lax.top_k(logits, top_k)[0][..., -1:]
    logits = jnp.where(logits < lowest, -jnp.inf, logits)
  if top_p < 1.0:
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probs = jax.nn.softmax(ordered)
    # A token stays if those before it do not reach the mass yet.
    kept = jnp.cumsum(probs, axis=-1) - probs < top_p
    lowest = jnp.min(jnp.where(kept, ordered, jnp.inf), -1, keepdims=True)
    logits = jnp.where(logits < lowest, -jnp.inf, logits)
  return logits


def _generate(
    tokens_to_logits,
    cache,
    batch_size,
    max_decode_length,
    eos_id,
    start_tokens,
    choose,
):
  """Extends all rows by `choose(logits, index)` until all have ended."""

  def unfinished(state):
    return (state.index < max_decode_length) & ~jnp.all(state.finished)

  def step(state):
    logits, new_cache = tokens_to_logits(
        _last_token(state.tokens, state.index, start_tokens), state.cache
    )
    logits = logits.astype(jnp.float32)
    token = choose(logits, state.index).astype(jnp.int32)
    log_probs = jax.nn.log_softmax(logits)
    gained = jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]
    token = jnp.where(state.finished, 0, token)
    return _Sequences(
        index=state.index + 1,
        tokens=state.tokens.at[:, state.index].set(token),
        scores=state.scores + jnp.where(state.finished, 0.0, gained),
        finished=state.finished | (token == eos_id),
        cache=new_cache,
    )

  state = jax.lax.while_loop(
      unfinished,
      step,
      _Sequences(
          index=jnp.zeros((), jnp.int32),
          tokens=jnp.zeros((batch_size, max_decode_length), jnp.int32),
          scores=jnp.zeros((batch_size,), jnp.float32),
          finished=jnp.zeros((batch_size,), bool),
          cache=cache,
      ),
  )
  return Decoded(state.tokens, state.scores)


def _last_token(tokens, index, start_tokens):
  """Returns the token before `index`, or the start token, `[rows, 1]`."""
  tokens = tokens.reshape(-1, tokens.shape[-1])
  last = jnp.take(tokens, jnp.maximum(index - 1, 0), axis=-1)
  return jnp.where(index == 0, start_tokens, last)[:, None]


class _Beams(NamedTuple):
  index: jax.Array  # Position to be written next.
  live_tokens: jax.Array  # <int32>[batch, num_beams, max_decode_length]
  live_scores: jax.Array  # Log-likelihood, <float32>[batch, num_beams]
  done_tokens: jax.Array  # As live_tokens; these have ended.
  done_scores: jax.Array  # Log-likelihood / length penalty.
  cache: Cache


def expand_beams(x: jax.Array, num_beams: int) -> jax.Array:
  """Repeats each row of `[batch, ...]` to `[batch * num_beams, ...]`."""
  return jnp.repeat(x, num_beams, axis=0)


def length_penalty(length: jax.Array | int, alpha: float) -> jax.Array:
  """`((5 + length) / 6) ** alpha` (arXiv 1609.08144, equation 14)."""
  return ((5.0 + jnp.asarray(length, jnp.float32)) / 6.0) ** alpha


def beam_search(
    tokens_to_logits: TokensToLogits,
    cache: Cache,
    *,
    batch_size: int,
    max_decode_length: int,
    eos_id: int = 1,
    start_tokens: jax.Array | int = 0,
    num_beams: int = 4,
    alpha: float = 0.6,
    cache_batch_axis: int = 0,
) -> Decoded:
  """Searches for the sequences with the best length-normalized likelihood.

  An end-of-sequence token finishes a beam if it is among the `num_beams` best
  continuations, so one beam with `alpha = 0` is greedy decoding. The search
  stops when no live beam can still beat a finished one.

  Args:
    tokens_to_logits: One step of the model, see the module's docstring, for
      `batch_size * num_beams` rows, the beams of an example side by side.
    cache: An empty cache for `batch_size * num_beams` rows.
    batch_size: Number of examples.
    max_decode_length: Number of tokens to generate at most.
    eos_id: The id that ends a sequence.
    start_tokens: What the model reads first, `<int32>[batch * num_beams]` or
      one for all.
    num_beams: Number of sequences followed at once.
    alpha: Exponent of the length penalty, at least 0; T5 uses 0.6.
    cache_batch_axis: Axis of the rows in the arrays of `cache`: 0, and 1 with
      `scan_layers`. Arrays without that axis are shared counters.

  Returns:
    `num_beams` sequences per example, the best first. Only ended sequences
    count; fewer than `num_beams` of them are filled up with zeros and a score
    of minus infinity. An example without any returns its live beams.

  Raises:
    errors.UserError: If an option is out of its range.
  """
  if num_beams < 1 or alpha < 0:
    raise errors.UserError(
        'num_beams must be at least 1 and alpha at least 0, got '
        f'{num_beams} and {alpha}.'
    )

  def unfinished(state):
    # Scores only fall and the penalty only grows: no live beam ends better.
    best_live = state.live_scores[:, 0] / length_penalty(
        max_decode_length, alpha
    )
    hopeful = best_live > jnp.min(state.done_scores, axis=-1)
    return (state.index < max_decode_length) & jnp.any(hopeful)

  def step(state):
    logits, new_cache = tokens_to_logits(
        _last_token(state.live_tokens, state.index, start_tokens), state.cache
    )
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    log_probs = log_probs.reshape(batch_size, num_beams, -1)
    parents, tokens, scores = _continue(state.live_scores, log_probs)
    sequences = _gather(state.live_tokens, parents)
    sequences = sequences.at[:, :, state.index].set(tokens)
    ended = tokens == eos_id
    in_beam = jnp.arange(tokens.shape[-1]) < num_beams
    normalized = scores / length_penalty(state.index + 1, alpha)
    done_tokens, done_scores = _best(
        jnp.concatenate([state.done_tokens, sequences], axis=1),
        jnp.concatenate(
            [
                state.done_scores,
                jnp.where(ended & in_beam, normalized, -jnp.inf),
            ],
            axis=1,
        ),
        num_beams,
    )
    live_scores, order = jax.lax.top_k(
        jnp.where(ended, -jnp.inf, scores), num_beams
    )
    return _Beams(
        index=state.index + 1,
        live_tokens=_gather(sequences, order),
        live_scores=live_scores,
        done_tokens=done_tokens,
        done_scores=done_scores,
        cache=_reorder(new_cache, _gather(parents, order), cache_batch_axis),
    )

  state = jax.lax.while_loop(
      unfinished,
      step,
      _empty_beams(batch_size, num_beams, max_decode_length, cache),
  )
  any_done = jnp.any(jnp.isfinite(state.done_scores), axis=1, keepdims=True)
  live_scores = state.live_scores / length_penalty(max_decode_length, alpha)
  return Decoded(
      jnp.where(any_done[..., None], state.done_tokens, state.live_tokens),
      jnp.where(any_done, state.done_scores, live_scores),
  )


def _empty_beams(batch_size, num_beams, max_decode_length, cache):
  """One live beam with nothing in it; the others cannot be chosen."""
  tokens = jnp.zeros((batch_size, num_beams, max_decode_length), jnp.int32)
  nothing = jnp.full((batch_size, num_beams), -jnp.inf)
  return _Beams(
      index=jnp.zeros((), jnp.int32),
      live_tokens=tokens,
      live_scores=nothing.at[:, 0].set(0.0),
      done_tokens=tokens,
      done_scores=nothing,
      cache=cache,
  )


def _continue(live_scores, log_probs):
  """Finds the best one-token continuations, best first.

  Twice as many as beams, if there are: at most one per beam has ended, so
  enough remain live.

  Args:
    live_scores: `<float32>[batch, num_beams]`.
    log_probs: `<float32>[batch, num_beams, vocab]`.

  Returns:
    Parent beam, token and score, each `[batch, continuations]`.
  """
  batch_size, num_beams, vocab_size = log_probs.shape
  totals = (live_scores[:, :, None] + log_probs).reshape(batch_size, -1)
  scores, order = jax.lax.top_k(totals, num_beams * min(2, vocab_size))
  return order // vocab_size, (order % vocab_size).astype(jnp.int32), scores


def _best(tokens, scores, count):
  """Returns the `count` sequences with the best scores, best first."""
  scores, order = jax.lax.top_k(scores, count)
  return _gather(tokens, order), scores


def _gather(x, order):
  """Takes `x[b, order[b, i]]`."""
  return jax.vmap(lambda rows, indices: rows[indices])(x, order)


def _reorder(cache, parents, batch_axis):
  """Gives every row of the cache the entries of its parent beam."""
  batch_size, num_beams = parents.shape
  rows = (parents + num_beams * jnp.arange(batch_size)[:, None]).reshape(-1)

  def reorder(entry):
    if entry.ndim <= batch_axis:
      return entry
    return jnp.take(entry, rows, axis=batch_axis)

  return jax.tree.map(reorder, cache)
