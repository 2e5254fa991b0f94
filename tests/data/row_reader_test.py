# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of reading files of one format, and of their splits."""

import json

import pytest

from moe_peft.data import chat
from moe_peft.data import example_rows
from moe_peft.data import row_parsers
from moe_peft.data import row_reader
from moe_peft.data import splits
from moe_peft.data import vocabularies
from tests import refusals


def _write(path, *rows):
  path.write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
  return str(path)


def _reader(row_format=None):
  return row_reader.RowReader(
      row_parsers.Keys(), row_format, lambda target: None
  )


def test_all_files_have_the_format_of_the_first_row(tmp_path):
  row = {'prompt': 'q', 'completion': 'a'}
  first = _write(tmp_path / 'a.jsonl', row, {**row, 'text': 'x'})
  second = _write(tmp_path / 'b.jsonl', {'text': 'x'})
  reader = _reader()
  assert len(reader(first)) == 2 and 'completions' in reader.format.says
  with refusals.refused(f'{second}, line 1', "'prompt'"):
    reader(second)
  assert len(_reader()(second)) == 1


@pytest.mark.parametrize('given', ['data', 'train'])
def test_files_of_splits(tmp_path, given):
  rows = [{'text': f't{i}'} for i in range(20)]
  path = _write(tmp_path / 'a.jsonl', *rows)
  paths = dict.fromkeys(('train', 'validation', 'test', 'data')) | {given: path}
  files = splits.Files(**paths, fractions=(1, 0, 0))
  of = {'data': 'split in 1.0, 0.0, 0.0', 'train': 'train'}
  assert files.found() == {of[given]: [path]}
  read = files.read('my', _reader())
  assert list(read) == ['train'] and len(read['train']) == 20


def test_models_without_a_tokenizer_have_no_template():
  assert chat.Options().chat(vocabularies.byte_vocabulary()) is None


@pytest.mark.parametrize('inputs_end', [False, True])
def test_texts_as_the_tokens_that_a_task_has(tmp_path, inputs_end):
  path = _write(tmp_path / 'a.jsonl', {'prompt': 'q', 'completion': 'a'})
  vocabulary = vocabularies.byte_vocabulary()
  (row,) = example_rows.as_tokens(
      _reader()(path), vocabulary, None, inputs_end
  )
  end = (vocabulary.eos_id,)
  assert row.features == {
      'inputs': (ord('q') + 3,) + (end if inputs_end else ()),
      'targets': (ord('a') + 3, *end),
  }
  assert row.place == f'{path}, line 1'
