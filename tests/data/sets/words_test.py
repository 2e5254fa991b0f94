# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the registered tasks and mixtures, through SeqIO."""

import itertools

from clu.data import dataset_iterator
import numpy as np
import pytest
import seqio

from moe_peft import errors
from moe_peft.data import catalog
from moe_peft.data import registration
from moe_peft.data import vocabularies
from moe_peft.data.sets import words

_LENGTHS = {'inputs': 32, 'targets': 24}


def _batches(name, seed, pack=False, split='train', lengths=None):
  dataset = seqio.get_dataset(
      name,
      lengths or _LENGTHS,
      dataset_split=split,
      shuffle=True,
      num_epochs=None,
      seed=seed,
      feature_converter=seqio.EncDecFeatureConverter(pack=pack),
  )
  return dataset.batch(8, drop_remainder=True)


def _take(dataset, count):
  return list(itertools.islice(dataset.as_numpy_iterator(), count))


def _equal(first, second):
  return len(first) == len(second) and all(
      np.array_equal(a[k], b[k])
      for a, b in zip(first, second, strict=True)
      for k in a
  )


def test_adaptation_tasks_are_not_pretrained():
  pretrained = set(catalog.task_names('tiny_pretrain'))
  for mixture in ('quickstart', 'word_adaptation'):
    adapted = catalog.task_names(mixture)
    assert not pretrained & set(adapted)
    assert len(adapted) >= 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'pack'),
    [('tiny_pretrain', True), ('word_adaptation', False)],
)
def test_mixtures_train(name, pack):
  (batch,) = _take(_batches(name, seed=0, pack=pack), 1)
  assert batch['encoder_input_tokens'].shape == (8, 32)
  assert batch['decoder_target_tokens'].shape == (8, 24)
  # Each row has inputs and targets that end with EOS, and nothing is cut.
  ends = (batch['encoder_input_tokens'] == 1).sum(axis=1)
  assert np.array_equal(ends, (batch['decoder_target_tokens'] == 1).sum(axis=1))
  assert ends.min() >= 1
  if pack:
    assert np.array_equal(ends, batch['encoder_segment_ids'].max(axis=1))
  else:
    assert ends.max() == 1


@pytest.mark.slow
def test_shuffling_follows_the_seed():
  first = _take(_batches('rhyme', seed=3), 2)
  assert _equal(first, _take(_batches('rhyme', seed=3), 2))
  assert not _equal(first, _take(_batches('rhyme', seed=4), 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    'name, pack',
    [
        pytest.param('tiny_pretrain', True, marks=pytest.mark.long),
        ('quickstart', False),
    ],
)
def test_restored_iterators_continue(name, pack, tmp_path):
  def make():
    return dataset_iterator.TfDatasetIterator(
        _batches(name, seed=5, pack=pack), checkpoint=True
    )

  iterator = make()
  for _ in range(3):
    next(iterator)
  iterator.save(tmp_path / 'iterator')
  expected = [next(iterator) for _ in range(3)]
  # Small enough to be saved often.
  size = sum(file.stat().st_size for file in tmp_path.iterdir())
  assert size < 8 * 2**20
  restored = make()
  restored.restore(tmp_path / 'iterator')
  assert _equal(expected, [next(restored) for _ in range(3)])
  assert not _equal(expected, _take(_batches(name, seed=5, pack=pack), 3))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['span_strings', 'past_tense', 'word_form'])
def test_measured_lengths_hold(name):
  record = registration.RECORDS[name]
  task = catalog.get_task_or_mixture(name)
  longest = {'inputs': 0, 'targets': 0}
  for split in ('train', 'validation', 'test'):
    dataset = task.get_dataset(None, split, shuffle=False)
    for example in dataset.as_numpy_iterator():
      for feature in longest:
        longest[feature] = max(longest[feature], len(example[feature]))
  assert longest == {k: size for k, (size, _) in record.longest.items()}


def test_all_word_tasks_fit_the_documented_lengths():
  catalog.check_feature_lengths('tiny_pretrain', _LENGTHS)
  catalog.check_feature_lengths(
      'word_adaptation', {'inputs': 32, 'targets': 16}
  )


def _evaluator(name, **kwargs):
  return seqio.Evaluator(
      name,
      seqio.EncDecFeatureConverter(pack=False),
      eval_split='test',
      sequence_length=_LENGTHS,
      **kwargs,
  )


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    [
        name if name in ('syllables', 'rhyme') else
        pytest.param(name, marks=pytest.mark.long)
        for name in words.RANKED
    ],
)
def test_ranking_survives_the_evaluator(name):
  # Scores come back in batches that cut through the choices, out of order.
  def perfect(dataset, *unused):
    right = [
        bool(x['is_correct'])
        for x in catalog.get_task_or_mixture(name)
        .get_dataset(_LENGTHS, 'test', shuffle=False)
        .as_numpy_iterator()
    ]
    scores = []
    for index, features in dataset.batch(7).as_numpy_iterator():
      assert features['decoder_target_tokens'].shape[1] == 24
      scores.extend((int(i), float(right[i])) for i in index)
    return scores[::-1]

  def constant(dataset, *unused):
    return [(int(i), 0.0) for i, _ in dataset.as_numpy_iterator()]

  evaluator = _evaluator(name)
  for score_fn, expected in (
      (perfect, 100.0),
      (constant, 100 / len(registration.RECORDS[name].rows_fn()['test'][0]
                           .choices)),
  ):
    results, _ = evaluator.evaluate(
        compute_metrics=True, step=0, score_fn=score_fn, predict_fn=None
    )
    value = results.result()[name][catalog.primary_metric(name)]
    assert value == pytest.approx(expected)


def test_generation_survives_the_evaluator():
  def predict(dataset, *unused):
    # The right tokens, padded; every second row is wrong.
    return [
        (int(i), x['decoder_target_tokens'] * (i % 2))
        for i, x in dataset.as_numpy_iterator()
    ]

  evaluator = _evaluator('past_tense', num_examples=40)
  results, _ = evaluator.evaluate(
      compute_metrics=True, step=0, score_fn=None, predict_fn=predict
  )
  assert results.result() == {'past_tense': {'exact_match': 50.0}}


@pytest.mark.slow
def test_a_span_corruption_task_evaluates_alike_under_all_seeds():
  task = catalog.get_task_or_mixture('span_words')
  first, second = (
      list(task.get_dataset(None, 'validation', shuffle=False, seed=seed)
           .take(50).as_numpy_iterator())
      for seed in (0, 1)
  )
  assert _equal(first, second)
  first, second = (
      list(task.get_dataset(None, 'train', shuffle=False, seed=seed)
           .take(50).as_numpy_iterator())
      for seed in (0, 1)
  )
  assert any(
      not np.array_equal(a['inputs'], b['inputs'])
      for a, b in zip(first, second, strict=True)
  )


def test_words_of_another_vocabulary_are_the_same_with_a_space():
  vocabulary = vocabularies.byte_vocabulary()
  names = [
      words.register(name, vocabulary) for name in ('morphology', 'article')
  ]
  assert names == ['tokens_morphology', 'tokens_article']
  assert catalog.task_names('tokens_morphology') == [
      f'tokens_{name}' for name in catalog.task_names('morphology')
  ]
  for name in ('lemma', 'article'):
    plain = registration.RECORDS[name].rows_fn()
    spaced = registration.RECORDS[f'tokens_{name}'].rows_fn()
    assert spaced.keys() == plain.keys()
    for ours, theirs in zip(spaced['test'], plain['test'], strict=True):
      assert ours.inputs == theirs.inputs
      assert ours.targets == f' {theirs.targets}'
      assert ours.choices == tuple(f' {c}' for c in theirs.choices)


def test_words_of_another_vocabulary_refuse_what_is_unknown():
  with pytest.raises(errors.UserError, match='no adaptation task .* .plural.'):
    words.register('plural', vocabularies.byte_vocabulary())
  words.register('lemma', vocabularies.byte_vocabulary())
  with pytest.raises(errors.UserError, match='other arguments'):
    words.register('lemma', seqio.ByteVocabulary(extra_ids=1))
