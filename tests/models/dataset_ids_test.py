# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A decoder whose id 0 is an ordinary token: it is read, predicted, trained."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.models import dataset_ids
from moe_peft.models import decoder_only
from tests.models import decoder_test

OFFSET = 1
ENDLESS = (1000,)


def model(bos_id=None, stop_ids=(6,)):
  """In ids of data sets; the model's are one less."""
  vocabulary = types.SimpleNamespace(
      id_offset=OFFSET, eos_id=stop_ids[0], stop_ids=stop_ids
  )
  return decoder_only.DecoderOnlyModel(
      decoder_test.adapted(), vocabulary, vocabulary, bos_id=bos_id
  )


def params():
  return decoder_test.variables()['params']


@functools.cache
def generate(bos_id, stop_ids, num_beams=1):
  run = functools.partial(
      model(bos_id, stop_ids).generate, max_decode_length=4,
      num_beams=num_beams,
  )
  return jax.jit(lambda prompts: run(params(), prompts))


PROMPTS = [[0, 0, 7, 0], [9, 0], [0]]


def padded(prompts):
  ids = np.zeros((len(prompts), 4), np.int32)
  for row, prompt in zip(ids, prompts, strict=True):
    row[: len(prompt)] = np.asarray(prompt) + OFFSET
  return jnp.asarray(ids)


@pytest.mark.slow
@pytest.mark.parametrize('bos_id', [None, 3])
def test_prompts_and_answers_may_hold_the_id_0(bos_id):
  """Greedy answers are those of one pass over the whole rows."""
  answers = np.asarray(generate(bos_id, ENDLESS)(padded(PROMPTS)))
  start = [] if bos_id is None else [bos_id]
  rows, places = np.zeros((3, 9), np.int32), []
  for row, prompt, answer in zip(rows, PROMPTS, answers, strict=True):
    ids = [*start, *prompt, *(answer - OFFSET)]
    row[: len(ids)] = ids
    places.append(len(ids) - 5 + np.arange(4))
  logits = decoder_test.adapted().apply(
      {'params': params()}, rows, np.ones_like(rows), enable_dropout=False
  )
  expected = np.take_along_axis(
      np.asarray(logits.argmax(-1)), np.asarray(places), axis=1
  )
  np.testing.assert_array_equal(answers, expected + OFFSET)


@pytest.mark.slow
def test_beams_never_hold_what_is_no_token():
  answers = generate(None, ENDLESS, 2)(padded(PROMPTS))
  assert (np.asarray(answers) > 0).all()


def test_the_beginning_is_not_read_twice():
  """Chat templates write it themselves."""
  bare = padded([[7, 8], [7, 8, 9], [0]])
  begun = padded([[3, 7, 8], [3, 7, 8, 9], [3, 0]])
  run = generate(3, ENDLESS)
  np.testing.assert_array_equal(run(bare), run(begun))


@pytest.mark.slow
def test_an_answer_ends_at_any_of_the_ends():
  prompts = padded(PROMPTS)
  whole = np.asarray(generate(None, ENDLESS)(prompts))[0]
  end = int(whole[1])
  ended = np.asarray(generate(None, (*ENDLESS, end))(prompts))[0]
  last = list(whole).index(end)
  assert ended[: last + 1].tolist() == whole[: last + 1].tolist()
  assert not ended[last + 1 :].any()


def test_one_end_may_stand_for_all():
  class Network:
    scan_layers = 'its own'

    def apply(self, variables, ids, targets, **options):
      assert ids.tolist() == [[0, 4]]
      return jnp.asarray([[[1.0, 2.0, 3.0, 4.0]]]), {}

  ids = jnp.asarray([[1, 5]])
  words = types.SimpleNamespace(id_offset=1, eos_id=2, stop_ids=(2, 4))
  network = dataset_ids.InDatasetIds(Network(), words)
  logits, _ = network.apply({}, ids, ids)
  assert logits[0, 0, 1:].tolist() == [1, 2, 3, 4] and logits[0, 0, 0] < -1e30
  logits, _ = dataclasses.replace(network, one_end=True).apply({}, ids, ids)
  assert logits[0, 0, jnp.asarray([1, 2, 3])].tolist() == [1, 4, 3]
  assert logits[0, 0, 4] < -1e30
  assert network.scan_layers == 'its own'


def test_vocabularies_without_an_offset():
  bytes_ = types.SimpleNamespace(eos_id=1)
  assert dataset_ids.offset(bytes_) == 0
  assert dataset_ids.stop_ids(bytes_) == (1,)
  assert dataset_ids.stop_ids(types.SimpleNamespace(eos_id=None)) == ()


@pytest.mark.slow
def test_losses_count_the_id_0():
  ids = jnp.asarray([[0, 0, 7, 0, 0, 0]])
  real = jnp.asarray([[1, 1, 1, 1, 0, 0]])
  batch = {
      'decoder_input_tokens': jnp.pad(ids, ((0, 0), (1, 0)))[:, :-1],
      'decoder_target_tokens': ids,
      'decoder_loss_weights': real,
      'decoder_segment_ids': real,
  }
  run = jax.jit(model().loss)
  loss, metrics = run(params(), batch)
  assert metrics['loss'].count == 4
  site = 'decoder/layers_0/mlp/wo'
  assert metrics['routing'][site]['load'].count == 4
  # What stands behind the tokens does not count.
  other = batch | {
      'decoder_input_tokens': batch['decoder_input_tokens'].at[:, 4:].set(9),
      'decoder_target_tokens': ids.at[:, 4:].set(9),
  }
  np.testing.assert_allclose(loss, run(params(), other)[0], rtol=1e-6)
