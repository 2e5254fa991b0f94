# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of rows as a model sees them."""

import json

import pytest
import seqio

from moe_peft.data import converters
from moe_peft.data import local
from moe_peft.data import preferences
from moe_peft.data import registration
from moe_peft.data import shown_rows
from moe_peft.data import vocabularies
from moe_peft.models import decoder_only
from moe_peft.models import encoder_decoder
from tests.data import small_chat

_LENGTHS = {'inputs': 8, 'targets': 6}


@pytest.fixture(autouse=True)
def _forget_tasks():
  yield
  for name in [n for n in seqio.TaskRegistry.names() if n.startswith('my_')]:
    seqio.TaskRegistry.remove(name)
    registration.RECORDS.pop(name, None)


def _task(tmp_path, vocabulary, *rows):
  file = tmp_path / 'a.jsonl'
  file.write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
  return local.register_task('my_task', train=str(file), vocabulary=vocabulary)


def _show(pieces):
  """Texts, what is learned in capitals, special tokens in brackets."""
  return ''.join(
      f'[{x.text}]' if x.special else x.text.upper() if x.learned else x.text
      for x in pieces
  )


def test_encoder_decoders_read_and_write(tmp_path):
  vocabulary = vocabularies.byte_vocabulary()
  model = encoder_decoder.EncoderDecoderModel(None, vocabulary, vocabulary)
  name = _task(tmp_path, vocabulary, {'inputs': 'ab', 'targets': 'cd'})
  converter = converters.of_model(model)
  (row,) = shown_rows.rows(name, model, converter, _LENGTHS, 'train')
  assert {k: _show(x) for k, x in row.items()} == {
      'inputs': 'ab[</s>]', 'targets': 'CD[</s>]'
  }
  assert row['targets'][-1].learned


@pytest.mark.parametrize('packing', [False, True])
def test_decoders_have_one_row(tmp_path, packing):
  vocabulary = small_chat.vocabulary(tmp_path)
  model = decoder_only.DecoderOnlyModel(None, vocabulary, vocabulary, bos_id=1)
  name = _task(
      tmp_path, vocabulary, *({'prompt': 'a', 'completion': x} for x in 'bc')
  )
  converter = converters.of_model(model, packing)
  rows = list(shown_rows.rows(name, model, converter, _LENGTHS, 'train'))
  shown = [_show(row['row']) for row in rows]
  one, two = '[<s>]aB[<|im_end|>]', '[<s>]aC[<|im_end|>]'
  assert shown == ([one + two] if packing else [one, two])
  segments = [x.segment for x in rows[-1]['row']]
  assert segments == ([1] * 4 + [2] * 4 if packing else [1] * 4)


def test_pairs_of_answers_are_two_rows(tmp_path):
  vocabulary = small_chat.vocabulary(tmp_path)
  model = decoder_only.DecoderOnlyModel(None, vocabulary, vocabulary, bos_id=1)
  row = {'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}
  name = _task(tmp_path, vocabulary, row)
  converter = preferences.PairConverter(converters.of_model(model))
  lengths = preferences.task_lengths(_LENGTHS)
  rows = shown_rows.rows(name, model, converter, lengths, 'train')
  assert [_show(row['row']) for row in rows] == [
      '[<s>]aB[<|im_end|>]', '[<s>]aC[<|im_end|>]'
  ]


def test_lengths_say_what_is_left_out(tmp_path):
  vocabulary = small_chat.vocabulary(tmp_path)
  name = _task(
      tmp_path, vocabulary,
      *({'prompt': 'a' * n, 'completion': 'b'} for n in (1, 3, 9)),
  )
  found, cut, dropped = shown_rows.lengths_of(name, _LENGTHS, 'train')
  assert {k: x.tolist() for k, x in found.items()} == {
      'inputs': [1, 3, 9], 'targets': [2, 2, 2]
  }
  assert (cut, dropped) == (0, 1)
