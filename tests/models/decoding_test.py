# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Decoding against brute force on a small Markov table of second order."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.models import beam_search
from moe_peft.models import decoding
from tests import refusals

VOCAB, LENGTH, EOS = 4, 4, 1


def table(seed, batch_size=1):
  """Log-probabilities `[batch, before_last, last, next]`."""
  logits = 1.5 * np.random.default_rng(seed).normal(
      size=(batch_size, VOCAB, VOCAB, VOCAB)
  )
  return np.asarray(jax.nn.log_softmax(logits), np.float64)


def model(log_probs, num_beams=1, cache_batch_axis=0):
  """`tokens_to_logits` and cache; the cache holds the token before the last.

  A beam search that reorders the cache wrongly reads the wrong row.
  """
  log_probs = jnp.repeat(jnp.asarray(log_probs, jnp.float32), num_beams, axis=0)
  rows = jnp.arange(log_probs.shape[0])

  def tokens_to_logits(ids, cache):
    last, before = ids[:, 0], cache['token'].reshape(-1)
    logits = log_probs[rows, before, last] + 3.0  # Any constant cancels.
    cache = {
        'token': last.reshape(cache['token'].shape),
        'cache_index': cache['cache_index'] + 1,
    }
    return logits, cache

  token = jnp.zeros((1,) * cache_batch_axis + rows.shape, jnp.int32)
  index = jnp.zeros((1,) * cache_batch_axis, jnp.int32)
  return tokens_to_logits, {'token': token, 'cache_index': index}


def log_likelihood(log_probs, tokens):
  total, before, last = 0.0, 0, 0
  for token in tokens:
    total += log_probs[before, last, token]
    before, last = last, token
  return total


def all_ended(log_probs, alpha):
  """Every ended sequence of up to LENGTH tokens with its score, best first."""
  found = []
  for length in range(1, LENGTH + 1):
    others = [t for t in range(VOCAB) if t != EOS]
    for prefix in itertools.product(others, repeat=length - 1):
      tokens = prefix + (EOS,)
      score = log_likelihood(log_probs, tokens) / ((5 + length) / 6) ** alpha
      found.append((score, tokens + (0,) * (LENGTH - length)))
  return sorted(found, reverse=True)


def search(log_probs, num_beams, alpha, axis=0, jit=True):
  tokens_to_logits, cache = model(log_probs, num_beams, axis)

  def run(cache):
    return beam_search.search(
        tokens_to_logits,
        cache,
        batch_size=len(log_probs),
        max_decode_length=LENGTH,
        eos_id=EOS,
        num_beams=num_beams,
        alpha=alpha,
        cache_batch_axis=axis,
    )

  return (jax.jit(run) if jit else run)(cache)


@pytest.mark.parametrize('alpha', [0.0, 0.6, 1.5])
@pytest.mark.parametrize('axis', [0, 1])
def test_wide_beam_search_is_brute_force(alpha, axis):
  """108 beams hold every prefix: 3 ** 3 live ones with 4 continuations."""
  log_probs = table(seed=1, batch_size=3)
  tokens, scores = search(log_probs, 108, alpha, axis)
  for example in range(3):
    expected = all_ended(log_probs[example], alpha)
    assert len(expected) == 1 + 3 + 9 + 27
    np.testing.assert_allclose(
        scores[example, :40], [score for score, _ in expected], rtol=1e-5
    )
    np.testing.assert_array_equal(
        tokens[example, :40], [sequence for _, sequence in expected]
    )
    assert np.all(np.isneginf(scores[example, 40:]))
    assert not np.any(tokens[example, 40:])


@pytest.mark.slow
@pytest.mark.parametrize('num_beams', [2, 3])
def test_narrow_beam_search_scores_are_those_of_its_sequences(num_beams):
  for seed in range(5):
    log_probs = table(seed, batch_size=2)
    tokens, scores = search(log_probs, num_beams, alpha=0.6)
    for example in range(2):
      assert list(scores[example]) == sorted(scores[example], reverse=True)
      ended = 0
      for sequence, score in zip(tokens[example], scores[example], strict=True):
        sequence = sequence.tolist()
        if EOS in sequence:
          ended += 1
          sequence = sequence[: sequence.index(EOS) + 1]
        if np.isfinite(score):
          penalty = ((5 + len(sequence)) / 6) ** 0.6
          expected = log_likelihood(log_probs[example], sequence) / penalty
          np.testing.assert_allclose(score, expected, rtol=1e-5)
      best, _ = all_ended(log_probs[example], 0.6)[0]
      assert not ended or scores[example, 0] <= best + 1e-5


def test_beam_search_beats_greedy_where_greedy_is_wrong():
  """Greedy takes 2 (0.6) and is left with at most 0.6 * 0.4 per sequence."""
  probs = np.full((1, VOCAB, VOCAB, VOCAB), 0.25)
  probs[:, :, 0] = [0.0, 0.0, 0.6, 0.4]
  probs[:, :, 2] = [0.3, 0.4, 0.15, 0.15]
  probs[:, :, 3] = [0.0, 1.0, 0.0, 0.0]
  with np.errstate(divide='ignore'):
    log_probs = np.log(probs)
  tokens_to_logits, cache = model(log_probs)
  greedy = decoding.sample(
      tokens_to_logits, cache, batch_size=1, max_decode_length=LENGTH
  )
  assert greedy.tolist() == [[2, 1, 0, 0]]
  beams = search(log_probs, 2, alpha=0.0)
  assert beams.tokens[0, 0].tolist() == [3, 1, 0, 0]
  np.testing.assert_allclose(
      beams.scores, [[math.log(0.4), math.log(0.24)]], rtol=1e-5
  )


def test_length_penalty_prefers_the_longer():
  """Ending at once: log 0.5. Two tokens: log 0.4, divided by (7/6)**alpha."""
  probs = np.full((1, VOCAB, VOCAB, VOCAB), 1e-9)
  probs[:, 0, 0] = [1e-9, 0.5, 0.4, 0.1]
  probs[:, 0, 2] = [1e-9, 1.0, 1e-9, 1e-9]
  log_probs = np.log(probs)
  assert math.log(0.4) / (7 / 6) ** 2 > math.log(0.5)
  for alpha, expected in ((0.0, [1, 0, 0, 0]), (2.0, [2, 1, 0, 0])):
    tokens, scores = search(log_probs, 2, alpha)
    assert tokens[0, 0].tolist() == expected
  np.testing.assert_allclose(
      scores[0, 0], math.log(0.4) / (7 / 6) ** 2, rtol=1e-4
  )


def test_without_an_end_beam_search_returns_live_beams():
  probs = np.full((1, VOCAB, VOCAB, VOCAB), 0.0)
  probs[..., 2], probs[..., 3] = 0.75, 0.25
  with np.errstate(divide='ignore'):
    tokens, scores = search(np.log(probs), 2, alpha=0.6)
  assert tokens[0, 0].tolist() == [2] * LENGTH
  np.testing.assert_allclose(
      scores[0, 0], LENGTH * math.log(0.75) / ((5 + LENGTH) / 6) ** 0.6,
      rtol=1e-5,
  )


@pytest.mark.parametrize('seed', range(6))
def test_one_beam_without_penalty_is_greedy(seed):
  log_probs = table(seed, batch_size=4)
  tokens_to_logits, cache = model(log_probs)
  tokens = jax.jit(
      lambda cache: decoding.sample(
          tokens_to_logits,
          cache,
          batch_size=4,
          max_decode_length=LENGTH,
          eos_id=EOS,
      )
  )(cache)
  beams = search(log_probs, 1, alpha=0.0)
  np.testing.assert_array_equal(tokens, beams.tokens[:, 0])
  for example, sequence in enumerate(tokens.tolist()):
    if EOS in sequence:
      end = sequence.index(EOS) + 1
      assert not any(sequence[end:])
      sequence = sequence[:end]
    np.testing.assert_allclose(
        beams.scores[example, 0],
        log_likelihood(log_probs[example], sequence),
        rtol=1e-5,
    )


@pytest.mark.parametrize('function', [decoding.sample, beam_search.search])
def test_stops_when_every_sequence_has_ended(function):
  """The second example ends after 3 tokens; 40 are allowed."""
  calls = []

  def tokens_to_logits(ids, cache):
    step = cache['cache_index']
    jax.debug.callback(lambda s: calls.append(int(s)), step)
    ends = jnp.array([2, 3])
    is_end = jnp.repeat(step + 1 >= ends, ids.shape[0] // 2)
    logits = jnp.where(is_end[:, None], jnp.array([0.0, 60, 0, 0]),
                       jnp.array([0.0, 0, 60, 0]))
    return logits, {'cache_index': step + 1}

  greedy = function is decoding.sample
  rows = {} if greedy else {'num_beams': 1, 'alpha': 0.0}
  decoded = function(
      tokens_to_logits,
      {'cache_index': jnp.zeros((), jnp.int32)},
      batch_size=2,
      max_decode_length=40,
      eos_id=EOS,
      **rows,
  )
  jax.effects_barrier()
  tokens = decoded if greedy else decoded.tokens[:, 0]
  assert tokens[:, :4].tolist() == [[2, 1, 0, 0], [2, 2, 1, 0]]
  assert not np.any(tokens[:, 4:])
  assert sorted(calls) == [0, 1, 2]


def sample(log_probs, seed, temperature=1.0):
  tokens_to_logits, cache = model(log_probs)
  return decoding.sample(
      tokens_to_logits,
      cache,
      batch_size=len(log_probs),
      max_decode_length=2,
      rng=jax.random.key(seed),
      eos_id=EOS,
      temperature=temperature,
  )


@pytest.mark.parametrize(
    'temperature,expected',
    [
        (1.0, [0.1, 0.2, 0.3, 0.4]),
        # Squares of the probabilities, normalized by their sum 0.3.
        (0.5, [1 / 30, 4 / 30, 9 / 30, 16 / 30]),
        (0.0, [0, 0, 0, 1]),
    ],
)
def test_sampled_frequencies(temperature, expected):
  count = 4096
  log_probs = np.tile(
      np.log([0.1, 0.2, 0.3, 0.4]), (count, VOCAB, VOCAB, 1)
  )
  tokens = sample(log_probs, 0, temperature)
  first = np.bincount(tokens[:, 0], minlength=VOCAB) / count
  # Four standard errors of a frequency are at most 4 * sqrt(1 / 4 / n).
  np.testing.assert_allclose(first, expected, atol=4 * 0.5 / math.sqrt(count))
  # The second token is independent of the first, except after the end.
  alive = np.asarray(tokens[:, 0]) != EOS
  second = np.bincount(tokens[alive, 1], minlength=VOCAB) / alive.sum()
  np.testing.assert_allclose(second, expected, atol=0.04)
  assert not np.any(tokens[~alive, 1])


def test_sampling_repeats_with_the_same_key_only():
  log_probs = table(3, batch_size=64)
  first, again, other = (sample(log_probs, s) for s in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert np.any(first != other)


def test_who_watches_sees_every_token_in_order_and_may_stop():
  tokens_to_logits, cache = model(table(seed=0))
  seen = []

  def watch(tokens):
    seen.append(int(tokens[0]))
    return np.asarray(len(seen) == most)

  def run():
    seen.clear()
    return jax.jit(lambda cache: decoding.sample(
        tokens_to_logits, cache, batch_size=1, max_decode_length=6, eos_id=9,
        watch=watch,
    ))(cache)[0].tolist()

  most = 99
  whole = run()
  assert seen == whole and len(whole) == 6
  most = 2
  assert run() == whole[:2] + [0] * 4


def test_bad_temperatures():
  with refusals.refused('temperature', -1.0):
    sample(table(0), 0, -1.0)
  tokens_to_logits, cache = model(table(0))
  with refusals.refused('temperature', 'key'):
    decoding.sample(
        tokens_to_logits, cache, batch_size=1, max_decode_length=2,
        temperature=1.0,
    )


@pytest.mark.parametrize(
    'options', [{'num_beams': 0}, {'num_beams': -1}, {'alpha': -1.0}]
)
def test_bad_beam_options(options):
  ((name, value),) = options.items()
  tokens_to_logits, cache = model(table(0))
  with refusals.refused(name, value):
    beam_search.search(
        tokens_to_logits, cache, batch_size=1, max_decode_length=2, **options
    )
