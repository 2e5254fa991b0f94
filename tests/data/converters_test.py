# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Rows of decoders: ids of models, and which tokens are real."""

import types

import numpy as np
import pytest
import seqio
import tensorflow as tf

from moe_peft.data import converters
from tests import refusals

LENGTHS = {'inputs': 4, 'targets': 6}
ROWS = [
    {'inputs': [5, 6], 'targets': [7, 3]},
    {'inputs': [4, 1, 1], 'targets': [1, 3]},
    {'inputs': [9], 'targets': [8, 8, 8, 3]},
]


def vocabulary(id_offset=0):
  return types.SimpleNamespace(id_offset=id_offset, eos_id=3)


def dataset(rows):
  spec = {
      name: tf.TensorSpec([None], tf.int32) for name in rows[0]
  }
  return tf.data.Dataset.from_generator(
      lambda: ({k: np.array(v, np.int32) for k, v in x.items()} for x in rows),
      output_signature=spec,
  )


def convert(rows, id_offset=0, bos_id=0, lengths=LENGTHS, pack=False):
  converter = converters.RowConverter(vocabulary(id_offset), bos_id, pack=pack)
  return list(converter(dataset(rows), lengths).as_numpy_iterator())


def check(row, **expected):
  for name, values in expected.items():
    values = values + [0] * (len(row[f'decoder_{name}']) - len(values))
    assert row[f'decoder_{name}'].tolist() == values, name


@pytest.mark.slow
@pytest.mark.parametrize('pack', [False, True])
def test_without_an_offset_rows_are_those_of_seqio(pack):
  theirs = seqio.PrefixLMFeatureConverter(pack=pack)(dataset(ROWS), LENGTHS)
  ours = convert(ROWS, pack=pack)
  for row, expected in zip(ours, theirs.as_numpy_iterator(), strict=True):
    mask = row.pop('decoder_segment_ids')
    real = expected['decoder_target_tokens'] > 0
    assert (mask > 0).tolist() == real.tolist()
    if pack:
      assert mask.tolist() == expected.pop('decoder_segment_ids').tolist()
    assert {k: x.tolist() for k, x in row.items()} == {
        k: x.tolist() for k, x in expected.items()
    }


@pytest.mark.slow
def test_the_example_of_the_docstring():
  rows = [{'inputs': [5, 6], 'targets': [7, 2]}]
  lengths = {'inputs': 3, 'targets': 3}
  check(
      convert(rows, 0, 1, lengths)[0],
      target_tokens=[5, 6, 7, 2],
      loss_weights=[0, 0, 1, 1],
      segment_ids=[1, 1, 1, 1],
      causal_attention=[1, 1, 1],
  )
  check(
      convert(rows, 0, None, lengths)[0],
      target_tokens=[6, 7, 2],
      loss_weights=[0, 1, 1],
      segment_ids=[1, 1, 1],
      causal_attention=[1, 1],
  )
  for bos_id, read in ((1, [1, 5, 6, 7]), (None, [5, 6, 7])):
    row = convert(rows, 0, bos_id, lengths)[0]['decoder_input_tokens']
    assert row[: len(read)].tolist() == read


def test_the_id_0_is_a_token_like_others():
  row = convert(ROWS, id_offset=1, bos_id=None)[1]
  check(
      row,
      target_tokens=[0, 0, 0, 2],
      loss_weights=[0, 0, 1, 1],
      segment_ids=[1, 1, 1, 1],
  )
  assert row['decoder_input_tokens'][:4].tolist() == [3, 0, 0, 0]
  row = convert(ROWS, id_offset=1, bos_id=0)[1]
  check(row, target_tokens=[3, 0, 0, 0, 2], segment_ids=[1] * 5)
  assert row['decoder_input_tokens'][:5].tolist() == [0, 3, 0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('bos_id', 'weighted'), [(None, True), (0, False), (5, True)]
)
def test_packed_rows_hold_the_same_examples(bos_id, weighted):
  rows = [dict(row) for row in ROWS]
  if weighted:
    for row in rows:
      row[converters.WEIGHTS] = [1, 0]
  alone = convert(rows, 1, bos_id)
  (packed,) = convert(rows, 1, bos_id, {'inputs': 8, 'targets': 12}, True)
  start = 0
  for number, row in enumerate(alone, start=1):
    length = row['decoder_segment_ids'].sum()
    part = {k: x[start : start + length] for k, x in packed.items()}
    assert set(part.pop('decoder_segment_ids')) == {number}
    assert part.pop('decoder_positions').tolist() == list(range(length))
    for name, values in part.items():
      assert values.tolist() == row[name][:length].tolist(), name
    start += length
  assert not packed['decoder_segment_ids'][start:].any()


def test_tasks_may_say_which_targets_count():
  rows = [
      # What is appended, the end, counts.
      {'inputs': [5], 'targets': [7, 8, 9, 3], converters.WEIGHTS: [0, 1, 0]},
      {'inputs': [], 'targets': [7, 8, 3], converters.WEIGHTS: [0, 1, 1, 1, 1]},
  ]
  for bos_id, expected in ((1, [0, 0, 1, 0, 1]), (None, [0, 1, 0, 1])):
    first, second = convert(rows, 1, bos_id)
    check(first, loss_weights=expected)
    check(second, loss_weights=[0, 1, 1] if bos_id else [1, 1])


@pytest.mark.slow
@pytest.mark.parametrize('pack', [False, True])
def test_targets_of_encoder_decoders_may_not_count(pack):
  weights = [[1, 0], [1, 1], [0, 1, 0, 1]]
  rows = [
      {**row, converters.WEIGHTS: given}
      for row, given in zip(ROWS, weights, strict=True)
  ]
  convert = lambda rows: list(
      converters.EncoderDecoderConverter(pack=pack)(
          dataset(rows), {'inputs': 8, 'targets': 8}
      ).as_numpy_iterator()
  )
  plain = convert(ROWS)
  ours = [row.pop('decoder_loss_weights') for row in convert(rows)]
  found = []
  for given, row in zip(ours, plain, strict=True):
    real = row['decoder_target_tokens'] > 0
    assert not given[~real].any()
    found.extend(given[real].tolist())
  assert found == sum(weights, [])


def test_a_row_begins_once():
  """Chat templates write the beginning themselves."""
  written = {'inputs': [3, 5, 6], 'targets': [7, 4]}
  bare = {'inputs': [5, 6], 'targets': [7, 4]}
  one, other = convert([written, bare], 1, 2)
  for name, values in one.items():
    real = one['decoder_segment_ids'] > 0
    assert values[real].tolist() == other[name][real].tolist(), name


def test_tasks_may_have_no_inputs():
  rows = [{'targets': [5, 6, 3]}]
  row = convert(rows, 1, None, {'targets': 5})[0]
  check(row, target_tokens=[5, 2], loss_weights=[1, 1], segment_ids=[1, 1])
  assert row['decoder_input_tokens'][:2].tolist() == [4, 5]


def test_encoder_decoders_pad_with_0():
  words = vocabulary(1)
  words.tokenizer_file = 'some/tokenizer.json'
  model = types.SimpleNamespace(
      features=('encoder_input_tokens',), input_vocabulary=words,
      output_vocabulary=words,
  )
  with refusals.refused('VOCABULARY', 'some/tokenizer.json'):
    converters.of_model(model)
  words.id_offset = 0
  assert type(converters.of_model(model)) is converters.EncoderDecoderConverter


@pytest.mark.slow
def test_how_full_packed_rows_are():
  rows = {
      'encoder_segment_ids': np.array([[1, 1, 2, 0], [1, 0, 0, 0]]),
      'decoder_segment_ids': np.array([[1, 2, 0, 0], [1, 0, 0, 0]]),
      'decoder_target_tokens': np.zeros([2, 4]),
  }
  assert converters.fill(rows) == (100 * 7 / 16, 1.5)
