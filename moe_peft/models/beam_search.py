# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Beam search with a cache; `decoding.py` says what a step of a model is."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft.models import decoding


class Beams(NamedTuple):
  """Sequences that a beam search has found, the best first.

  Attributes:
    tokens: `<int32>[batch, num_beams, max_decode_length]`, the end-of-sequence
      id included and zeros after it.
    scores: `<float32>[batch, num_beams]`, log-likelihood in nats.
  """

  tokens: jax.Array
  scores: jax.Array

  def best(self, count: int) -> 'Beams':
    """Returns the `count` sequences with the best scores, best first."""
    scores, order = jax.lax.top_k(self.scores, count)
    return Beams(_gather(self.tokens, order), scores)


class _Search(NamedTuple):
  index: jax.Array  # Position to be written next.
  live: Beams  # These have not ended.
  done: Beams  # These have; their scores are divided by the length penalty.
  cache: decoding.Cache

  def is_hopeful(self, longest: jax.Array) -> jax.Array:
    """Whether some live beam may beat a finished one; `longest`: a penalty."""
    # Scores only fall and the penalty only grows: no live beam ends better.
    best_live = self.live.scores[:, 0] / longest
    return jnp.any(best_live > jnp.min(self.done.scores, axis=-1))

  def result(self, longest: jax.Array) -> Beams:
    """The beams that have ended, or else the live ones, example by example."""
    live_scores = self.live.scores / longest
    any_done = jnp.any(jnp.isfinite(self.done.scores), axis=1, keepdims=True)
    return Beams(
        jnp.where(any_done[..., None], self.done.tokens, self.live.tokens),
        jnp.where(any_done, self.done.scores, live_scores),
    )


def length_penalty(length: jax.Array | int, alpha: float) -> jax.Array:
  """`((5 + length) / 6) ** alpha` (arXiv 1609.08144, equation 14)."""
  return ((5.0 + jnp.asarray(length, jnp.float32)) / 6.0) ** alpha


def search(
    tokens_to_logits: decoding.TokensToLogits,
    cache: decoding.Cache,
    *,
    batch_size: int,
    max_decode_length: int,
    eos_id: int | Sequence[int] = 1,
    start_tokens: jax.Array | int = 0,
    num_beams: int = 4,
    alpha: float = 0.6,
    cache_batch_axis: int = 0,
) -> Beams:
  """Searches for the sequences with the best length-normalized likelihood.

  An end-of-sequence token finishes a beam if it is among the `num_beams` best
  continuations, so one beam with `alpha = 0` is greedy decoding. The search
  stops when no live beam can still beat a finished one. The step, the cache and
  `start_tokens` are for `batch_size * num_beams` rows, the beams of an example
  side by side.

  Args:
    tokens_to_logits: As in `decoding.sample`.
    cache: As in `decoding.sample`.
    batch_size: Number of examples.
    max_decode_length: As in `decoding.sample`.
    eos_id: As in `decoding.sample`.
    start_tokens: As in `decoding.sample`.
    num_beams: Number of sequences followed at once.
    alpha: Exponent of the length penalty, at least 0; T5 uses 0.6.
    cache_batch_axis: Axis of the rows in the arrays of `cache`: 0, and 1 with
      `scan_layers`. Arrays without that axis are shared counters.

  Returns:
    `num_beams` sequences per example, scores divided by the length penalty.
    Only ended sequences count; fewer than `num_beams` of them are filled up
    with zeros and a score of minus infinity. An example without any returns its
    live beams.

  Raises:
    errors.UserError: If an option is out of its range.
  """
  for name, value, least in (('num_beams', num_beams, 1), ('alpha', alpha, 0)):
    if value < least:
      raise errors.UserError(f'It must be at least {least}, not {value}.', name)

  longest = length_penalty(max_decode_length, alpha)

  def unfinished(search):
    return (search.index < max_decode_length) & search.is_hopeful(longest)

  def step(search):
    ids = decoding.last_token(search.live.tokens, search.index, start_tokens)
    logits, new_cache = tokens_to_logits(ids, search.cache)
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    log_probs = log_probs.reshape(batch_size, num_beams, -1)
    parents, candidates = _continue(search.live, search.index, log_probs)
    ended = decoding.is_end(candidates.tokens[:, :, search.index], eos_id)
    penalty = length_penalty(search.index + 1, alpha)
    live, order, done = _sort(candidates, ended, penalty, search.done)
    new_cache = _reorder(new_cache, _gather(parents, order), cache_batch_axis)
    return _Search(search.index + 1, live, done, new_cache)

  search = jax.lax.while_loop(
      unfinished, step, _start(batch_size, num_beams, max_decode_length, cache)
  )
  return search.result(longest)


def _start(batch_size, num_beams, max_decode_length, cache) -> _Search:
  """One live beam with nothing in it; the others cannot be chosen."""
  tokens = jnp.zeros((batch_size, num_beams, max_decode_length), jnp.int32)
  nothing = jnp.full((batch_size, num_beams), -jnp.inf)
  return _Search(
      index=jnp.zeros((), jnp.int32),
      live=Beams(tokens, nothing.at[:, 0].set(0.0)),
      done=Beams(tokens, nothing),
      cache=cache,
  )


def _continue(live: Beams, index, log_probs) -> tuple[jax.Array, Beams]:
  """Finds the best one-token continuations, best first.

  Twice as many as beams, if there are: at most one per beam has ended, so
  enough remain live.

  Args:
    live: The beams.
    index: Position of the token.
    log_probs: `<float32>[batch, num_beams, vocab]`.

  Returns:
    Parent beams `[batch, continuations]`, and the continuations.
  """
  batch_size, num_beams, vocab_size = log_probs.shape
  totals = (live.scores[:, :, None] + log_probs).reshape(batch_size, -1)
  scores, order = jax.lax.top_k(totals, num_beams * min(2, vocab_size))
  parents, token = jnp.divmod(order, vocab_size)
  tokens = _gather(live.tokens, parents).at[:, :, index].set(token)
  return parents, Beams(tokens, scores)


def _sort(candidates: Beams, ended, penalty, done: Beams):
  """Returns the new live beams, which candidates they are, and the ended ones.
  """
  num_beams = done.scores.shape[-1]
  in_beam = jnp.arange(ended.shape[-1]) < num_beams
  finished = Beams(
      candidates.tokens,
      jnp.where(ended & in_beam, candidates.scores / penalty, -jnp.inf),
  )
  both = jax.tree.map(
      lambda *parts: jnp.concatenate(parts, axis=1), done, finished
  )
  scores, order = jax.lax.top_k(
      jnp.where(ended, -jnp.inf, candidates.scores), num_beams
  )
  live = Beams(_gather(candidates.tokens, order), scores)
  return live, order, both.best(num_beams)


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
