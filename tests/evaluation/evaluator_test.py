# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of what an evaluation refuses; what it computes, see tests/models."""

import jax.numpy as jnp
import pytest
import seqio
import tensorflow as tf

from moe_peft import errors
from moe_peft.core import partitioning
from moe_peft.data import metrics
from moe_peft.data import vocabularies
from moe_peft.evaluation import evaluator as evaluator_lib
from moe_peft.evaluation import shown_values
from tests import refusals


@pytest.fixture(name='evaluator')
def _evaluator():
  """Makes the evaluator of a task with some targets."""
  name = 'evaluator_test'

  def make(targets, metric):
    def dataset_fn(split, shuffle_files, seed=None):
      del split, shuffle_files, seed
      texts = tf.constant(targets, tf.string)
      return tf.data.Dataset.from_tensor_slices(
          {'inputs': texts, 'targets': texts}
      )

    feature = seqio.Feature(vocabularies.byte_vocabulary())
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset_fn, splits=['test']),
        preprocessors=[
            seqio.preprocessors.tokenize, seqio.preprocessors.append_eos
        ],
        output_features={'inputs': feature, 'targets': feature},
        metric_fns=[metric],
    )
    return evaluator_lib.Evaluator(
        name,
        seqio.EncDecFeatureConverter(pack=False),
        {'inputs': 8, 'targets': 8},
        split='test',
        batch_size=8,
        num_examples=None,
        mesh=partitioning.make_mesh(1),
    )

  yield make
  seqio.TaskRegistry.remove(name)


def test_an_empty_split(evaluator):
  with refusals.refused('evaluator_test', "'test'", 'TASK_FEATURE_LENGTHS'):
    evaluator([], metrics.exact_match)


def test_a_sample_has_short_and_long_rows(evaluator):
  rows = evaluator(['a' * (1 + i % 7) for i in range(56)], metrics.exact_match)

  def lengths(sample):
    return [int((x['decoder_target_tokens'] > 0).sum(1)[0]) for _, x in sample]

  # Of seven batches of eight rows, by length, the middle ones of two halves.
  assert lengths(rows.sample(16)) == [3, 7]
  assert lengths(rows.sample(9)) == lengths(rows.sample(16))
  assert lengths(rows.sample(1000)) == [2, 3, 4, 5, 6, 7, 8]


def test_a_metric_of_more_than_texts(evaluator):
  def of_aux(targets, predictions, aux_values):
    raise AssertionError

  with refusals.refused('evaluator_test', 'PREDICTION_WITH_AUX'):
    evaluator(['1'], of_aux)


class _Silent:
  """A model that generates nothing."""

  def score(self, params, batch):
    return jnp.zeros(batch['decoder_target_tokens'].shape[0])

  def prompts(self, batch):
    return batch['encoder_input_tokens']

  def generate(self, params, prompts, length, example_ids):
    return jnp.zeros((prompts.shape[0], length), jnp.int32)


def test_what_a_metric_says_reaches_the_user(evaluator):
  """SeqIO would make it an error of its own, with its own stack."""
  good = evaluator(['1', '2'], metrics.numeric_accuracy)
  results = good.evaluate(_Silent(), {})
  assert results['evaluator_test']['numeric_accuracy'] == 0
  seqio.TaskRegistry.remove('evaluator_test')
  bad = evaluator(['1', 'two'], metrics.numeric_accuracy)
  with pytest.raises(errors.UserError, match="evaluator_test: .*'two' has no"):
    bad.evaluate(_Silent(), {})


def test_a_metric_that_names_its_value_otherwise(evaluator):
  def distance(targets, predictions):
    del targets, predictions
    return {'mean_distance': 2.0, 'largest': 3.0}

  evaluator(['a'], distance)
  results = {'evaluator_test': {'mean_distance': 2.0, 'largest': 3.0}}
  assert shown_values.primary_metrics(results) == {
      'evaluator_test': 'mean_distance'
  }
  named = {'evaluator_test': {'largest': 3.0, 'distance': 2.0}}
  assert shown_values.primary_metrics(named) == {'evaluator_test': 'distance'}


def test_less_is_better_of_the_loss_and_of_what_a_metric_says(evaluator):
  """The letters "wer" in a name say nothing."""

  def answer_accuracy(targets, predictions):
    del targets, predictions
    return {'answer_accuracy': 50.0, 'errors': 3.0}

  evaluator(['a'], answer_accuracy)
  results = {'evaluator_test': {'answer_accuracy': 50.0, 'errors': 3.0}}
  assert shown_values.lower_is_better(results) == ('loss',)
  answer_accuracy.lower_is_better = ('errors',)
  assert shown_values.lower_is_better(results) == ('loss', 'errors')
