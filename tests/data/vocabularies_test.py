# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A tokenizer.json as a SeqIO vocabulary."""

import pytest
import seqio
import tensorflow as tf

from moe_peft.data import vocabularies
from tests import refusals
from tests import small_tokenizers

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


def test_text_survives(vocabulary):
  for text in TEXTS:
    ids = vocabulary.encode(text)
    assert min(ids) > 2 and max(ids) < vocabulary.vocab_size
    assert vocabulary.decode([*ids, EOS_ID, 5, 0, 0]) == text
  assert len(vocabulary.encode('the cat')) < len('the cat')


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


def test_ids_of_data_sets_are_one_more_where_0_is_a_token(tmp_path):
  """Also where it is the end, or what becomes of unknown characters."""
  file = write_tokenizer(tmp_path, special=())
  ordinary = vocabularies.TokenizerVocabulary(file, 5, stop_ids=(6, 5))
  assert ordinary.id_offset == 1
  assert ordinary.eos_id == 6 and ordinary.stop_ids == (6, 7)
  assert ordinary.encode('!') == [1] and ordinary.decode([1, 1, 6, 1]) == '!!'
  assert ordinary.decode_tf(tf.constant([[1, 7, 0]])).numpy() == [b'!']
  file = write_tokenizer(tmp_path)
  assert vocabularies.TokenizerVocabulary(file, EOS_ID).id_offset == 0
  assert vocabularies.TokenizerVocabulary(file, 0).id_offset == 1
  small_tokenizers.word_level(['<unk>', 'a'], 1, '<unk>').save(file)
  assert vocabularies.TokenizerVocabulary(file, 1).id_offset == 1


def test_special_tokens_in_a_text_are_text_unless_asked_for(tmp_path):
  file = write_tokenizer(tmp_path)
  text = '<|start|>a'
  words = vocabularies.TokenizerVocabulary(file, EOS_ID)
  ids = words.encode(text)
  assert min(ids) > 2 and words.decode(ids) == text
  asked = vocabularies.TokenizerVocabulary(
      file, EOS_ID, special_tokens_in_text=True
  )
  assert asked != words
  assert asked.encode(text)[0] == 1


def test_only_tokenizers_that_begin_texts_are_read_twice(tmp_path):
  file = write_tokenizer(tmp_path)
  read = vocabularies.read_tokenizer
  assert read(file, begins=False) is read(file)
  tokenizer = tokenizers.Tokenizer.from_file(file)
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(
      prepend_scheme='first'
  )
  other = str(tmp_path / 'other.json')
  tokenizer.save(other)
  for special in (True, False):
    within = read(other, special, begins=False)
    assert within is not read(other, special)
    assert within.encode_special_tokens is not special


def test_a_token_above_the_embedding_is_named(tmp_path):
  """Texts have no special tokens, so there may be one more than rows."""
  file = write_tokenizer(tmp_path)
  tokenizer = tokenizers.Tokenizer.from_file(file)
  tokenizer.add_special_tokens(['<image>'])
  tokenizer.save(file)
  rows = tokenizer.get_vocab_size() - 1
  words = vocabularies.TokenizerVocabulary(file, EOS_ID, num_ids=rows)
  assert words.last_in_texts[1] == rows
  words.encode('the <image>')
  with refusals.refused('VOCABULARY', '<image>', f'{rows} rows', rows + 1):
    vocabularies.TokenizerVocabulary(
        file, EOS_ID, num_ids=rows, special_tokens_in_text=True
    ).encode('the <image>')


@pytest.mark.slow
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
