# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A stranger's `tokenizer.json` neither panics nor fills the memory."""

import json

import pytest

from moe_peft.data import tokenizer_file
from tests.fuzz import formats
from tests.refusals import refused

pytest.importorskip('tokenizers')


@pytest.fixture
def write(tmp_path):
  def to_file(**changes):
    file = tmp_path / 'tokenizer.json'
    file.write_text(json.dumps({**formats.tokenizer(), **changes}))
    return str(file)

  return to_file


def test_a_good_file_is_read(write):
  assert tokenizer_file.read(write()).encode('ab').tokens


def test_a_text_has_the_same_ids_each_time(write):
  """Though the file drops merges at random, as for training."""
  pieces = {'<unk>': 0, 'a': 1, 'b': 2, 'ab': 3}
  model = {'type': 'BPE', 'vocab': pieces, 'merges': ['a b'], 'dropout': 0.5,
           'unk_token': '<unk>'}
  made = tokenizer_file.read(write(model=model))
  (ids,) = {tuple(made.encode('ab').ids) for _ in range(20)}
  assert ids[-1] == 3


@pytest.mark.parametrize(
    'changes',
    [
        {'model': {'type': 'WordLevel', 'unk_token': 'gone', 'vocab': {}}},
        {'pre_tokenizer': {  # It tries every way to cut a text.
            'type': 'Split', 'pattern': {'Regex': '(a+)+$'},
            'behavior': 'Isolated', 'invert': False}},
        {'normalizer': {'type': 'Sequence', 'normalizers': [
            {'type': 'Replace', 'pattern': {'String': 'x'},
             'content': 'x' * 100}] * 5}},
        {'normalizer': {'type': 'Prepend', 'prepend': 'x' * 5000}},
        {'normalizer': {'type': 'Sequence',
                        'normalizers': [{'type': 'NFC'}] * 500}},
        {'model': 7},
        {'model': None},
    ],
)  # fmt: skip
def test_what_would_panic_or_grow_is_refused(changes, write, capfd):
  file = write(**changes)
  with refused('VOCABULARY_FILE', file):
    tokenizer_file.read(file)
  assert 'panicked' not in capfd.readouterr().err


@pytest.mark.slow
def test_a_panic_on_a_text_is_an_error():
  class Panic(BaseException):
    pass

  with refused('VOCABULARY_FILE', 'fails'):
    with tokenizer_file.refused('It fails'):
      raise Panic
