# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tasks in many languages: real rows, and nothing leaks between splits."""

import sys

import pytest
import seqio

from moe_peft.data import registration
from moe_peft.data import rows
from moe_peft.data.sets import language_rows
from moe_peft.data.sets import languages
from tests import refusals

pytest.importorskip('babel')
pytest.importorskip('simplemma')


def texts(task, language, split='test'):
  return {row.inputs: row.targets
          for row in language_rows.split_rows(task, language)[split]}


@pytest.mark.slow
def test_dates_are_written_as_people_of_the_language_write_them():
  found = {}
  for language in ('pl', 'hu', 'id'):
    for split in rows.SPLITS:
      found |= texts('date', language, split)
  months = {text.split()[1] for key, text in found.items() if ' pl:' in key}
  assert len(months) == 12 and 'listopada' in months
  assert all(text[:4] in key for key, text in found.items() if ' hu:' in key)
  assert {'Januari', 'Desember'} <= {
      text.split()[1] for key, text in found.items() if ' id:' in key
  }


@pytest.mark.slow
def test_a_date_and_a_number_are_in_one_split_in_all_languages():
  units = {split: set() for split in rows.SPLITS}
  for language in ('de', 'cy'):
    for split, found in language_rows.split_rows('date', language).items():
      assert len(found) == (8000 if split == 'train' else 200)
      units[split] |= {row.words for row in found}
  assert not units['train'] & (units['validation'] | units['test'])
  assert not units['validation'] & units['test']


def test_plural_classes_are_those_of_the_language_and_balanced():
  # CLDR: 1 is `one`, 2 to 4 `few`, 5 `many`; 11 to 14 are `many`.
  found = texts('plural', 'ru', 'train')
  assert set(found.values()) == {'one', 'few', 'many'}
  for text, name in found.items():
    number = int(text.split()[-1])
    teen = 11 <= number % 100 <= 14
    last = number % 10
    assert name == ('many' if teen or last in (0, 5, 6, 7, 8, 9)
                    else 'one' if last == 1 else 'few')
  counts = list(texts('plural', 'ru').values())
  assert len({counts.count(name) for name in set(counts)}) == 1


def test_lemmas_of_an_unseen_language_are_not_trained_on_in_a_seen_one():
  """Welsh and Irish are small tables; a stand-in for 23 seen languages."""
  kept = language_rows.unseen_rows('lemma', 'id', ('id',))
  whole = language_rows.split_rows('lemma', 'id')
  # No test row is a training row of the same language, so all are kept.
  assert kept['test'] == whole['test'] and not kept['train']
  trained = {row.words for row in whole['train']}
  assert not trained & {row.words for row in whole['test']}
  assert all(row.inputs != f'lemma id: {row.targets}' for row in whole['test'])


def test_all_tasks_are_registered_and_fit_their_lengths():
  names = seqio.MixtureRegistry.get('languages_all').tasks
  assert len(names) == 23 + 24 + 4 + 10 + 4
  assert not set(languages.SEEN) & set(languages.UNSEEN)
  for name in ('date_sw', 'plural_pl'):
    longest = registration.RECORDS[name].longest
    assert longest['inputs'][0] <= 48 and longest['targets'][0] <= 40


@pytest.mark.slow
def test_a_package_that_is_missing_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'babel.dates', None)
  with refusals.refused('babel.dates', 'babel', 'languages'):
    language_rows.split_rows.__wrapped__('date', 'de')
