# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the math sets, on rows of our own and on the real ones."""

import json
import os
from pathlib import Path
import types

import pytest
import seqio

from moe_peft.data import metrics
from moe_peft.data.sets import contamination
from moe_peft.data.sets import math_problems
from tests import refusals

_SHARED = Path(__file__).parents[4] / 'shared' / 'data' / 'math'
REAL = Path(os.environ.get('MOE_PEFT_MATH', _SHARED))
needs_rows = pytest.mark.skipif(
    not (REAL / 'gsm8k.json').is_file(),
    reason='no test sets of LLM-Adapters in $MOE_PEFT_MATH (or '
    '../shared/data/math)',
)
PROBLEM = (
    'Ann has {} red hens and sells {} of them on the market before noon. How '
    'many hens does she keep?'
)


def _write(folder, **changes):
  """All six sets with one row each, in the repository's own form."""
  for name, stem in math_problems.TEST_SETS.items():
    row = {
        'instruction': PROBLEM.format(12, 3) if name == 'gsm8k' else
        f'What is the {stem}? Answer Choices: (A) 9 (B) 1,000',
        'input': '',
        'output': 'The answer is 77.',  # Never scored.
        'answer': 'B' if name == 'aqua' else '9.0',
    }
    row |= changes.get(name, {})
    (folder / stem).mkdir(exist_ok=True)
    (folder / stem / 'test.json').write_text(json.dumps([row]))


@pytest.fixture(autouse=True)
def _fresh():
  yield
  for name in (math_problems.TRAINED, *math_problems.TEST_SETS):
    if name in seqio.TaskRegistry.names():
      seqio.TaskRegistry.remove(name)
  if math_problems.MIXTURE in seqio.MixtureRegistry.names():
    seqio.MixtureRegistry.remove(math_problems.MIXTURE)


@pytest.mark.parametrize(
    ('text', 'number'),
    [
        ('so 3 + 4 = 7. The answer is 7.', 7.0),
        ('It costs $1,234.50.', 1234.5),
        ('from 5 to -2', -2.0),
        ('none at all', None),
    ],
)
def test_last_number(text, number):
  assert metrics.last_number(text) == number


@pytest.mark.parametrize(
    ('text', 'option'),
    [('The answer is (C).', 'C'), ('A is wrong, B', 'B'), ('Answer: E', 'E'),
     ('An Apple', None)],
)
def test_last_option(text, option):
  assert metrics.last_option(text) == option


def test_answers_are_extracted_and_compared():
  assert metrics.numeric_accuracy(
      [' 9', ' 0.667', ' 5', ' 7'],
      ['8 + 1 = 9.0.', 'about 0.6666', 'no idea', '7 of 8'],
  ) == {'numeric_accuracy': 50.0}
  assert metrics.option_accuracy(
      [' A', ' B'], ['The answer is (A).', 'C']
  ) == {'option_accuracy': 50.0}


def test_the_answer_counts_not_the_output(tmp_path):
  _write(tmp_path)
  math_problems.register(data_dir=str(tmp_path))
  task = seqio.TaskRegistry.get('gsm8k')
  (example,) = task.get_dataset(None, split='test').as_numpy_iterator()
  assert example['inputs_pretokenized'].decode() == (
      f'Question: {PROBLEM.format(12, 3)}\nAnswer:'
  )
  assert example['targets_pretokenized'] == b' 9'
  aqua = seqio.TaskRegistry.get('aqua')
  (example,) = aqua.get_dataset(None, split='test').as_numpy_iterator()
  assert example['targets_pretokenized'] == b' B'
  assert aqua.metric_fns == [metrics.option_accuracy]


def _item(question, answer):
  """A row as reasoning-gym makes it."""
  return {
      'question': question + math_problems._DEMAND,
      'answer': str(answer),
      'metadata': {'answer_cot': f'Some steps.\n#### {answer}'},
  }


def test_templates_of_test_rows_are_left_out_whole(tmp_path, monkeypatch):
  _write(tmp_path)
  other = 'Tom {} rides his bicycle to the {} lake and back.'
  items = [
      (1, _item('Its template, worded in quite another way, no hens.', 1)),
      *((2, _item(other.format(x, y), 4)) for x in 'abcd' for y in 'efg'),
      (1, _item(PROBLEM.format(50, 20), 30)),  # A copy with other numbers.
  ]
  monkeypatch.setattr(
      math_problems, '_gym', lambda num_rows, _: iter(items[:num_rows])
  )
  # A template is judged by all the rows that are looked at.
  assert math_problems.clean_templates(tmp_path, 13) == {1, 2}
  clean = math_problems.clean_templates(tmp_path)
  assert clean == {2}
  monkeypatch.setattr(math_problems, 'KEPT_TEMPLATES', clean)
  rows = math_problems.training_rows(13, 0)  # Too few to see the copy.
  every = [*rows['train'], *rows['validation']]
  assert len(every) == 12 and len(rows['validation']) == 1
  assert all('Tom' in row.inputs for row in every)
  assert {row.targets for row in every} == {' Some steps.\nThe answer is 4.'}
  with refusals.refused('math_problems.register.num_rows', 5):
    math_problems.training_rows(5, 0)


def test_absent_and_broken_files(tmp_path):
  with refusals.refused('math_problems.register.data_dir', tmp_path, 'https'):
    list(math_problems.test_rows(tmp_path, 'svamp'))
  _write(tmp_path, svamp={'answer': 'many'})
  path = tmp_path / 'SVAMP' / 'test.json'
  with refusals.refused(f'{path}, row 0', 'many'):
    list(math_problems.test_rows(tmp_path, 'svamp'))
  for row, name in (('{"instruction": "?"}', "'instruction'"), ('3', '3')):
    path.write_text(f'[{row}]')
    with refusals.refused(f'{path}, row 0', name):
      list(math_problems.test_rows(tmp_path, 'svamp'))
  for content in ('[{', '{}', '3'):
    path.write_text(content)
    with refusals.refused(path):
      list(math_problems.test_rows(tmp_path, 'svamp'))


def test_another_version_of_the_generator(monkeypatch):
  pytest.importorskip('reasoning_gym')
  monkeypatch.setattr(
      math_problems, 'importlib',
      types.SimpleNamespace(
          metadata=types.SimpleNamespace(version=lambda _: '0.2.0')
      ),
  )
  with refusals.refused('reasoning-gym', '0.2.0', 'reasoning-gym==0.1.25'):
    next(math_problems._gym(1, 0))


@needs_rows
def test_real_sizes():
  sizes = {
      name: len(list(math_problems.test_rows(REAL, name)))
      for name in math_problems.TEST_SETS
  }
  assert sizes == {
      'addsub': 395, 'multiarith': 600, 'singleeq': 508, 'svamp': 1000,
      'aqua': 254, 'gsm8k': 1319,
  }  # fmt: skip


@needs_rows
@pytest.mark.slow
def test_kept_templates_are_those_of_the_probe():
  pytest.importorskip('reasoning_gym')
  assert math_problems.clean_templates(REAL) == math_problems.KEPT_TEMPLATES


def test_however_few_rows_are_made_the_templates_are_the_same():
  """The first 600 rows alone do not give away five of the templates."""
  pytest.importorskip('reasoning_gym')
  by_question = {
      math_problems._asked(item): template
      for template, item in math_problems._gym(600, 0)
  }
  rows = math_problems.training_rows(600, 0)
  trained = [*rows['train'], *rows['validation']]
  assert len(trained) > 100
  assert {by_question[row.inputs] for row in trained} == (
      math_problems.KEPT_TEMPLATES
  )


@pytest.mark.slow
@needs_rows
def test_no_real_test_row_is_trained_on():
  """By another way of comparing than the index's, and with a control."""
  pytest.importorskip('reasoning_gym')
  rows = math_problems.training_rows(600, 0)
  tested = [
      contamination.ngrams(row.inputs)
      for name in math_problems.TEST_SETS
      for row in math_problems.test_rows(REAL, name)
  ]

  def nearest(text):
    grams = contamination.ngrams(text)
    return max(len(grams & other) / len(grams | other) for other in tested)

  trained = [*rows['train'], *rows['validation']]
  assert 100 < len(trained) < 300
  assert max(nearest(row.inputs) for row in trained) < math_problems.THRESHOLD
  dirty = [
      math_problems._question(item['question'])
      for _, item in math_problems._gym(20, 0)
  ]
  assert max(map(nearest, dirty)) > math_problems.THRESHOLD  # The control.
