# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of looking tasks up and of checking feature lengths."""

import pytest
import seqio

from moe_peft import errors
from moe_peft.data import catalog
from moe_peft.data import vocabularies


def test_unknown_task_names_the_nearest():
  with pytest.raises(errors.UserError, match="'quikstart'.*quickstart"):
    catalog.get_task_or_mixture('quikstart')
  with pytest.raises(errors.UserError, match='tiny_pretrain'):
    catalog.get_task_or_mixture('zzzzzz')
  assert catalog.get_task_or_mixture('past_tense').name == 'past_tense'


def test_lengths_that_are_just_enough():
  lengths = catalog.max_lengths('past_tense')
  # "past tense: " and 13 or 14 letters and EOS.
  assert lengths == {'inputs': 26, 'targets': 15}
  catalog.check_feature_lengths('past_tense', lengths)
  for feature in lengths:
    short = {**lengths, feature: lengths[feature] - 1}
    with pytest.raises(errors.UserError) as error:
      catalog.check_feature_lengths('past_tense', short)
    assert f'{feature} of up to {lengths[feature]} tokens' in str(error.value)
    assert (
        '--gin.TASK_FEATURE_LENGTHS="{\'inputs\': 26, \'targets\': 15}"'
        in str(error.value)
    )


def test_a_mixture_needs_what_its_longest_task_needs():
  needed = [catalog.max_lengths(t) for t in catalog.task_names('quickstart')]
  assert catalog.max_lengths('quickstart') == {
      feature: max(lengths[feature] for lengths in needed)
      for feature in ('inputs', 'targets')
  }


@pytest.mark.parametrize(
    'lengths',
    [{}, {'inputs': 32}, {'inputs': 0, 'targets': 9},
     {'inputs': 3.5, 'targets': 9}, {'inputs': True, 'targets': 9}],
)
def test_bad_lengths(lengths):
  with pytest.raises(errors.UserError, match='positive whole number'):
    catalog.check_feature_lengths('past_tense', lengths)


def test_unknown_task_is_found_before_lengths():
  with pytest.raises(errors.UserError, match='Unknown task'):
    catalog.check_feature_lengths('past_tence', {})


def test_primary_metrics_and_kinds():
  assert catalog.primary_metric('past_tense') == 'exact_match'
  assert catalog.primary_metric('syllables') == 'accuracy'
  assert catalog.kind('syllables') == 'phonology'
  with pytest.raises(errors.UserError, match='not a task'):
    catalog.primary_metric('quickstart')
  with pytest.raises(errors.UserError, match='Unknown task'):
    catalog.primary_metric('syllable')


def test_tasks_of_others_have_a_primary_metric_but_no_length():
  def bleu(targets, predictions):
    del targets, predictions
    return {'bleu': 0.0}

  feature = seqio.Feature(vocabularies.byte_vocabulary())
  seqio.TaskRegistry.add(
      'catalog_test_other',
      source=seqio.TextLineDataSource({'train': '/nowhere.txt'}),
      preprocessors=[],
      output_features={'inputs': feature, 'targets': feature},
      metric_fns=[bleu],
  )
  try:
    assert catalog.primary_metric('catalog_test_other') == 'bleu'
    assert catalog.kind('catalog_test_other') == 'other'
    catalog.check_feature_lengths(
        'catalog_test_other', {'inputs': 1, 'targets': 1}
    )
  finally:
    seqio.TaskRegistry.remove('catalog_test_other')
