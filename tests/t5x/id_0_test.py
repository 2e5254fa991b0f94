# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""T5X's decoder-only model where the id 0 is an ordinary token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

from moe_peft.data import converters
from moe_peft.data import vocabularies
from moe_peft.models import decoder_only
from tests import small_tokenizers
from tests.models import decoder_test
from tests.models import prompt_routing_test

pytest.importorskip('t5x')
pytestmark = pytest.mark.t5x

INPUTS = [[0, 0, 7, 0], [9, 0], [12, 3, 5, 6]]
TARGETS = [[5, 0, 0], [0, 7], [0]]


@pytest.mark.parametrize(
    ('bos_id', 'network'),
    [
        (None, decoder_test),
        (3, decoder_test),
        (3, prompt_routing_test),  # Both engines know which ids are the prompt.
    ],
)
def test_both_engines_give_the_same_answers_and_scores(
    bos_id, network, tmp_path
):
  from moe_peft.t5x import models

  words = small_tokenizers.word_level(['!', *'abcdefghij'], 0, 'a')
  words.save(str(tmp_path / 'tokenizer.json'))
  # Nothing of the tokenizer is used but its ids; the network has more rows.
  vocabulary = vocabularies.TokenizerVocabulary(
      str(tmp_path / 'tokenizer.json'), 10, stop_ids=(9,)
  )
  assert vocabulary.id_offset == 1
  module, params = network.adapted(), network.variables()['params']
  theirs = models.AdaptedDecoderOnlyModel(
      module, vocabulary, optimizer_def=None, bos_id=bos_id
  )
  ours = decoder_only.DecoderOnlyModel(
      module, vocabulary, vocabulary, bos_id=bos_id
  )
  rows = [
      {'inputs': np.int32(x) + 1, 'targets': np.int32(y) + 1}
      for x, y in zip(INPUTS, TARGETS, strict=True)
  ]
  dataset = tf.data.Dataset.from_generator(
      lambda: rows,
      output_signature=dict.fromkeys(rows[0], tf.TensorSpec([None], tf.int32)),
  )
  lengths = {'inputs': 4, 'targets': 6}
  batches = [
      next(converter(dataset, lengths).batch(3).as_numpy_iterator())
      for converter in (
          theirs.FEATURE_CONVERTER_CLS(pack=False), converters.of_model(ours)
      )
  ]
  jax.tree.map(np.testing.assert_array_equal, *batches)
  batch = {k: jnp.asarray(x) for k, x in batches[0].items()}
  np.testing.assert_allclose(
      jax.jit(theirs.score_batch)(params, batch),
      jax.jit(ours.score)(params, batch), rtol=1e-5,
  )
  answers = np.asarray(jax.jit(theirs.predict_batch)(params, batch))
  expected = np.asarray(
      jax.jit(lambda p, b: ours.generate(p, ours.prompts(b)[:, :4], 6))(
          params, batch
      )
  )
  ends = vocabulary.stop_ids
  for answer, other in zip(answers, expected, strict=True):
    # T5X goes on to the end of the row, and knows one end.
    other = [ends[0] if x in ends else x for x in other]
    assert answer[:6].tolist() == other
