# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of looking tasks up and of checking feature lengths."""

from pathlib import Path

import pytest
import seqio

from moe_peft.data import cache
from moe_peft.data import catalog
from moe_peft.data import local
from moe_peft.data import provenance
from moe_peft.data import vocabularies
from moe_peft.data.sets import words as _words  # noqa: F401 (registers tasks)
from tests import refusals


def lengths_of(name):
  return {feature: size for feature, (size, _) in catalog.longest(name).items()}


def test_unknown_task_names_the_nearest():
  with refusals.refused('MIXTURE_OR_TASK_NAME', "'quikstart'", 'quickstart'):
    catalog.get_task_or_mixture('quikstart')
  with refusals.refused('MIXTURE_OR_TASK_NAME', 'zzzzzz', 'tiny_pretrain'):
    catalog.get_task_or_mixture('zzzzzz')
  assert catalog.get_task_or_mixture('past_tense').name == 'past_tense'


def test_lengths_that_are_just_enough():
  lengths = lengths_of('past_tense')
  # "past tense: " and 13 or 14 letters and EOS.
  assert lengths == {'inputs': 26, 'targets': 15}
  catalog.check_feature_lengths('past_tense', lengths)
  for feature in lengths:
    short = {**lengths, feature: lengths[feature] - 1}
    with refusals.refused(
        'TASK_FEATURE_LENGTHS',
        f'{feature} of up to {lengths[feature]} tokens',
        '--gin.TASK_FEATURE_LENGTHS="{\'inputs\': 26, \'targets\': 15}"',
    ):
      catalog.check_feature_lengths('past_tense', short)


def test_a_mixture_needs_what_its_longest_task_needs():
  needed = [lengths_of(t) for t in catalog.task_names('quickstart')]
  assert lengths_of('quickstart') == {
      feature: max(lengths[feature] for lengths in needed)
      for feature in ('inputs', 'targets')
  }


@pytest.mark.parametrize(
    'lengths',
    [{}, {'inputs': 32}, {'inputs': 0, 'targets': 9},
     {'inputs': 3.5, 'targets': 9}, {'inputs': True, 'targets': 9}],
)
def test_bad_lengths(lengths):
  with refusals.refused('TASK_FEATURE_LENGTHS', lengths):
    catalog.check_feature_lengths('past_tense', lengths)


def test_unknown_task_is_found_before_lengths():
  with refusals.refused('MIXTURE_OR_TASK_NAME', 'past_tence'):
    catalog.check_feature_lengths('past_tence', {})


def test_primary_metrics():
  assert catalog.primary_metric('past_tense') == 'exact_match'
  assert catalog.primary_metric('syllables') == 'accuracy'
  with refusals.refused('quickstart'):
    catalog.primary_metric('quickstart')
  with refusals.refused('MIXTURE_OR_TASK_NAME', 'syllable'):
    catalog.primary_metric('syllable')


def _answer_accuracy(targets, predictions):
  del targets, predictions
  return {'answer_accuracy': 0.0}


def _word_errors(targets, predictions):
  del targets, predictions
  return {'wer': 0.0, 'words': 1.0}


_word_errors.lower_is_better = ('wer',)


@pytest.fixture(name='others_task')
def _others_task():
  name = 'catalog_test_other'
  feature = seqio.Feature(vocabularies.byte_vocabulary())
  seqio.TaskRegistry.add(
      name,
      source=seqio.TextLineDataSource({'train': '/nowhere.txt'}),
      preprocessors=[],
      output_features={'inputs': feature, 'targets': feature},
      metric_fns=[_answer_accuracy, _word_errors],
  )
  yield name
  seqio.TaskRegistry.remove(name)


def test_tasks_of_others_have_a_primary_metric_but_no_length(others_task):
  assert catalog.primary_metric(others_task) == '_answer_accuracy'
  catalog.check_feature_lengths(others_task, {'inputs': 1, 'targets': 1})


def test_a_metric_says_of_which_values_less_is_better(others_task):
  """The letters "wer" in the name of a value say nothing."""
  assert catalog.lower_is_better(others_task) == ['wer']
  assert catalog.lower_is_better('past_tense') == []


def test_data_are_told_apart(tmp_path):
  words = provenance.identities('past_tense')
  assert list(words) == ['past_tense'] and len(words['past_tense']) == 64
  assert provenance.identities('past_tense') == words
  file = tmp_path / 'rows.jsonl'
  file.write_text('{"inputs": "walk", "targets": "walked"}\n')
  name = local.register_task('told_apart', train=str(file))
  first = provenance.identities(name)
  assert list(first) == [
      str(file), 'splits of told_apart', 'rows of told_apart'
  ]
  file.write_text(file.read_text() * 2)
  assert provenance.identities(name) != first


def test_files_that_change_their_splits_are_told(tmp_path):
  files = [str(tmp_path / f'{x}.jsonl') for x in ('first', 'second')]
  for file in files:
    row = '{"inputs": "walk %d", "targets": "%s"}\n'
    Path(file).write_text(''.join(row % (i, file[-8:]) for i in range(40)))
  of = lambda name, **given: provenance.identities(
      local.register_task(name, **given)
  )
  then = of('as_they_were', train=files[0], test=files[1])
  provenance.check_identities(2, then, of(
      'of_another_name', train=files[0], test=files[1]
  ))
  with refusals.refused('splits of swapped', 'step 2', 'ALLOW_CHANGED_DATA'):
    provenance.check_identities(2, then, of(
        'swapped', train=files[1], test=files[0]
    ))
  shared = of('shared', data=files)
  with refusals.refused('splits of other_shares'):
    provenance.check_identities(2, shared, of(
        'other_shares', data=files, split_fractions=(0.5, 0.3, 0.2)
    ))
  provenance.check_identities(2, shared, of(
      'as_whole_numbers', data=files[::-1], split_fractions=(0.8, 0.1, 0.1)
  ))
  moved = tmp_path / 'moved.jsonl'
  moved.write_text(Path(files[0]).read_text())
  with refusals.refused('splits of moved_too'):  # Not the file, which is known.
    provenance.check_identities(2, shared, of(
        'moved_too', data=[str(moved), files[1]], split_fractions=(1, 0, 0)
    ))
  older = {x: then[x] for x in files}  # It did not say which is which.
  provenance.check_identities(2, older, then)


def test_rows_that_are_read_otherwise_are_told(tmp_path):
  file = tmp_path / 'rows.jsonl'
  row = '{"inputs": "walk %d", "targets": "walked", "other": "%d"}\n'
  file.write_text(''.join(row % (i, i) for i in range(4)))
  of = lambda name, **given: provenance.identities(
      local.register_task(name, train=str(file), **given)
  )
  then = of('by_default')
  provenance.check_identities(2, then, of(
      'by_its_name', row_format='inputs_targets'
  ))
  other = of('other_key', targets_key='other')
  with refusals.refused('rows of other_key', 'step 2', 'ALLOW_CHANGED_DATA'):
    provenance.check_identities(2, then, other)
  with refusals.refused('rows of cut_to_fit'):
    provenance.check_identities(2, then, of('cut_to_fit', too_long='cut'))
  older = {k: v for k, v in then.items() if not k.startswith('rows of')}
  provenance.check_identities(2, older, other)


def test_rates_of_a_mixture_are_told():
  words = ['past_tense', 'comparative']
  of = lambda name, *rates: provenance.identities(
      local.register_mixture(name, words, rates)
  )
  then = of('one_to_three', 1.0, 3.0)
  provenance.check_identities(2, then, of('two_to_six', 2.0, 6.0))
  changed = of('three_to_one', 3.0, 1.0)
  with refusals.refused(
      'share of comparative', '75 % of ', '25 % of ',
      'ALLOW_CHANGED_DATA',
  ):
    provenance.check_identities(2, then, changed)
  older = {k: v for k, v in then.items() if k in words}
  provenance.check_identities(2, older, changed)


def test_caches_are_told_apart(tmp_path):
  (tmp_path / 'info.train.json').write_text('{}')
  (tmp_path / 'train.tfrecord').write_bytes(b'123')
  first = cache.identity(tmp_path)
  assert cache.identity(tmp_path) == first
  (tmp_path / 'train.tfrecord').write_bytes(b'1234')
  second = cache.identity(tmp_path)
  (tmp_path / 'info.train.json').write_text('[]')
  assert len({first, second, cache.identity(tmp_path)}) == 3
