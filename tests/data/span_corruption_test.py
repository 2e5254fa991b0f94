# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of span corruption."""

import numpy as np
import pytest
import seqio
import tensorflow as tf

from moe_peft.data import span_corruption
from moe_peft.data import vocabularies


@pytest.mark.parametrize('total, parts', [(1, 1), (5, 1), (5, 5), (20, 6)])
def test_random_partition(total, parts):
  seen = set()
  for seed in range(20):
    sizes = span_corruption.random_partition(total, parts, [seed, 0]).numpy()
    assert sizes.shape == (parts,)
    assert sizes.sum() == total
    assert sizes.min() >= 1
    seen.add(tuple(sizes))
  assert len(seen) > 1 or total == parts or parts == 1


@pytest.mark.slow
@pytest.mark.parametrize('density, span', [(0.15, 3.0), (0.5, 1.0), (0.9, 2.0)])
@pytest.mark.parametrize('length', [2, 3, 7, 31])
def test_noise_mask(length, density, span):
  corruption = span_corruption.SpanCorruption(density, span)
  masks = [
      corruption.noise_mask(tf.constant(length), tf.constant([seed, 1])).numpy()
      for seed in range(50)
  ]
  noise = min(max(round(length * density), 1), length - 1)
  assert {mask.sum() for mask in masks} == {noise}
  spans = {int((mask & ~np.r_[False, mask[:-1]]).sum()) for mask in masks}
  wanted = max(1, int(np.round(noise / span)))
  assert spans == {min(wanted, noise, length - noise + 1)}
  assert corruption.lengths(length) == (
      length - noise + min(spans), noise + min(spans)
  )
  # Every place is dropped at times, also the first and the last, unless the
  # spans are so many that there is only one way to place them.
  if max(spans) <= length - noise:
    assert np.any(masks, axis=0).all()


def _corrupted(texts, seed, noise_seed=-1, epochs=1):
  vocabulary = vocabularies.byte_vocabulary()
  feature = seqio.Feature(vocabulary)
  dataset = tf.data.Dataset.from_tensor_slices(
      {'targets': texts, 'noise_seed': [noise_seed] * len(texts)}
  )
  dataset = seqio.preprocessors.tokenize(
      dataset, {'targets': feature}, copy_pretokenized=False
  ).repeat(epochs)
  with seqio.utils.map_seed_manager(seed):
    dataset = span_corruption.SpanCorruption(0.3, 2.0).corrupt(
        dataset, {'inputs': feature, 'targets': feature}
    )
  return [
      (list(x['inputs']), list(x['targets']))
      for x in dataset.as_numpy_iterator()
  ]


def _restore(inputs, targets):
  """Puts the dropped spans back where their sentinels are."""
  spans, sentinel = {}, None
  for token in targets:
    if token >= 259:
      sentinel = token
      spans[sentinel] = []
    else:
      spans[sentinel].append(token)
  assert sorted(spans, reverse=True) == [383 - i for i in range(len(spans))]
  assert [t for t in inputs if t >= 259] == list(spans)
  assert all(spans.values())
  restored = []
  for token in inputs:
    restored.extend(spans[token] if token >= 259 else [token])
  return vocabularies.byte_vocabulary().decode(restored)


def test_span_corruption_loses_nothing():
  texts = ['it', 'word', 'a string of many words', 'höhle'] * 10
  rows = _corrupted(texts, seed=0)
  assert [_restore(*row) for row in rows] == texts
  assert len({tuple(inputs) for inputs, _ in rows}) > 20


@pytest.mark.slow
def test_span_corruption_is_fixed_by_the_seed_and_new_each_epoch():
  texts = ['some words to read', 'and some more of them']
  assert _corrupted(texts, seed=1) == _corrupted(texts, seed=1)
  assert _corrupted(texts, seed=1) != _corrupted(texts, seed=2)
  rows = _corrupted(texts, seed=1, epochs=2)
  assert rows[:2] != rows[2:]


@pytest.mark.slow
def test_rows_with_a_noise_seed_are_always_corrupted_alike():
  texts = ['some words to read', 'and some more of them']
  rows = _corrupted(texts, seed=1, noise_seed=7, epochs=2)
  assert rows[:2] == rows[2:] == _corrupted(texts, seed=2, noise_seed=7)
  assert rows[:2] != _corrupted(texts, seed=1, noise_seed=8)
