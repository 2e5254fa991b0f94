# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A tokenizer.json as a SeqIO vocabulary."""

import pytest
import seqio
import tensorflow as tf

from moe_peft.data import vocabularies
from tests import refusals

tokenizers = pytest.importorskip('tokenizers')

TEXTS = ('a small cat sat on the mat', 'the bat and the cat sat', 'Größe')
EOS_ID = 2


def write_tokenizer(folder, special=('<|endoftext|>', '<|start|>', '<|end|>')):
  """Byte-level BPE, as LLaMA's relatives have it."""
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
      add_prefix_space=False
  )
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
      vocab_size=300,
      special_tokens=list(special),
      initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
  )
  tokenizer.train_from_iterator(TEXTS, trainer)
  tokenizer.save(str(folder / 'tokenizer.json'))
  return str(folder / 'tokenizer.json')


@pytest.fixture
def vocabulary(tmp_path):
  return vocabularies.TokenizerVocabulary(write_tokenizer(tmp_path), EOS_ID)


def test_text_survives_and_special_tokens_are_read_as_such(vocabulary):
  for text in TEXTS:
    ids = vocabulary.encode(text)
    assert min(ids) > 2 and max(ids) < vocabulary.vocab_size
    assert vocabulary.decode([*ids, EOS_ID, 5, 0, 0]) == text
  assert len(vocabulary.encode('the cat')) < len('the cat')
  assert vocabulary.encode('<|start|>a')[0] == 1


def test_seqio_tokenizes_with_it_and_its_iterators_can_be_saved(
    vocabulary, tmp_path
):
  feature = seqio.Feature(vocabulary, add_eos=True)
  dataset = tf.data.Dataset.from_tensor_slices({'targets': list(TEXTS)})
  dataset = seqio.preprocessors.tokenize(dataset, {'targets': feature})
  iterator = iter(dataset)
  checkpoint = tf.train.Checkpoint(iterator=iterator)
  first = next(iterator)['targets'].numpy().tolist()
  assert first == vocabulary.encode(TEXTS[0])
  path = checkpoint.write(str(tmp_path / 'position'))
  second = next(iterator)['targets'].numpy().tolist()
  assert second == vocabulary.encode(TEXTS[1])
  checkpoint.read(path)
  assert next(iterator)['targets'].numpy().tolist() == second
  decoded = vocabulary.decode_tf(tf.constant(second)).numpy().decode()
  assert decoded == TEXTS[1]


def test_equal_files_are_equal_vocabularies(vocabulary):
  """Gin builds one for each use of a macro."""
  other = vocabularies.TokenizerVocabulary(vocabulary.tokenizer_file, EOS_ID)
  assert other == vocabulary and hash(other) == hash(vocabulary)
  assert other != vocabularies.TokenizerVocabulary(other.tokenizer_file, 1)


def test_no_file(tmp_path):
  vocabulary = vocabularies.TokenizerVocabulary(str(tmp_path / 'no'), EOS_ID)
  with refusals.refused('VOCABULARY_FILE', tmp_path / 'no'):
    vocabulary.encode('a')


def test_an_ordinary_token_cannot_be_padding(tmp_path):
  file = write_tokenizer(tmp_path, special=())
  with refusals.refused('VOCABULARY_FILE', file, "'!'"):
    vocabularies.TokenizerVocabulary(file, EOS_ID).encode('a')


def test_lengths_are_those_of_the_run(tmp_path):
  """A file may ask its reader to cut and to fill up."""
  file = write_tokenizer(tmp_path)
  whole = vocabularies.TokenizerVocabulary(file, EOS_ID).encode(TEXTS[0])
  tokenizer = tokenizers.Tokenizer.from_file(file)
  tokenizer.enable_truncation(2)
  tokenizer.enable_padding(length=50)
  tokenizer.save(file)
  cut = tokenizers.Tokenizer.from_file(file).encode(TEXTS[0])
  assert len(cut.ids) == 50 and sum(cut.attention_mask) == 2
  assert vocabularies.TokenizerVocabulary(file, EOS_ID).encode(TEXTS[0]) == (
      whole
  )
