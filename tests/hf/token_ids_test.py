# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Rows begin and end as those of transformers do, id for id."""

import io
import json

import numpy as np
import pytest
import sentencepiece
import seqio

from moe_peft.data import vocabularies
from moe_peft.hf import import_base
from moe_peft.hf import token_ids
from tests import refusals
from tests import small_tokenizers
from tests.hf import import_decoder_test as models

KINDS = {
    'byte_level': small_tokenizers.byte_level,
    'byte_level_with_bos': small_tokenizers.byte_level_with_bos,
    'byte_fallback': small_tokenizers.byte_fallback,
    'unigram': small_tokenizers.unigram,
}
WORDS = ('<pad>', '<s>', '</s>', 'a', 'b', 'c')


def read(folder, hf_config=(), **files):
  """Reads a folder of JSON files; `_` stands for a dot in their names."""
  for name, content in files.items():
    (folder / f'{name}.json').write_text(json.dumps(content))
  return token_ids.read(folder, dict(hf_config), 1000)


def words(folder, post_processor=None):
  tokenizer = small_tokenizers.word_level(WORDS)
  if post_processor:
    tokenizer.post_processor = (
        small_tokenizers.tokenizers.processors.TemplateProcessing(
            single=post_processor,
            special_tokens=[('<s>', 1), ('</s>', 2)],
        )
    )
  tokenizer.save(str(folder / 'tokenizer.json'))


@pytest.mark.parametrize(
    ('post_processor', 'config', 'begin'),
    [
        ('<s> $A', None, 1),
        ('<s> $A </s>', {'add_bos_token': False}, 1),
        ('$A </s>', {'add_bos_token': True, 'bos_token': '<s>'}, None),
        # SmolLM2 names a token that nothing begins with.
        (None, {'bos_token': '<s>'}, None),
        (None, {'add_bos_token': True, 'bos_token': '<s>'}, 1),
        (None, {'add_bos_token': True, 'bos_token': {'content': '<s>'}}, 1),
        # Only config.json can say.
        (None, None, 4),
    ],
)
def test_what_rows_begin_with(post_processor, config, begin, tmp_path):
  words(tmp_path, post_processor)
  files = {} if config is None else {'tokenizer_config': config}
  assert read(tmp_path, {'bos_token_id': 4}, **files).begin == begin


def test_without_a_tokenizer_config_json_says_it(tmp_path):
  assert read(tmp_path, {'bos_token_id': 4, 'eos_token_id': [5, 6]}) == (
      token_ids.TokenIds(4, (5, 6), 1000)
  )
  assert read(tmp_path, {'bos_token_id': None}).begin is None
  assert read(tmp_path).ends == ()


@pytest.mark.parametrize(
    ('config', 'generation', 'tokenizer', 'ends'),
    [
        (2, None, None, (2,)),
        ([3, 2], None, None, (3, 2)),
        (2, [5, 4], None, (5, 4)),
        # LLaMA 3 and Gemma: the turn ends otherwise than the document.
        ([3, 4, 2], None, '</s>', (2, 3, 4)),
        (3, [3, 4], {'content': '</s>'}, (2, 3, 4)),
        (0, 0, None, (0,)),
    ],
)
def test_what_rows_end_with(config, generation, tokenizer, ends, tmp_path):
  words(tmp_path)
  files = {'generation_config': {'eos_token_id': generation},
           'tokenizer_config': {'eos_token': tokenizer}}
  assert read(tmp_path, {'eos_token_id': config}, **files).ends == ends


@pytest.mark.parametrize(
    ('name', 'content', 'field'),
    [
        ('generation_config', {'eos_token_id': 1000}, 'eos_token_id'),
        ('generation_config', {'eos_token_id': [2, '3']}, 'eos_token_id'),
        ('tokenizer', {}, 'VOCABULARY_FILE'),
    ],
)
def test_ids_that_are_none_are_named(name, content, field, tmp_path):
  with refusals.refused(field, f'{name}.json'):
    read(tmp_path, **{name: content})


def vocabulary(folder, tokenizer, **options):
  tokenizer.save(str(folder / 'tokenizer.json'))
  return vocabularies.TokenizerVocabulary(
      str(folder / 'tokenizer.json'), 2, **options
  )


@pytest.mark.parametrize('kind', KINDS)
def test_a_text_survives(kind, tmp_path):
  ours = vocabulary(tmp_path, KINDS[kind]())
  assert ours.id_offset == (kind != 'unigram')
  for text in small_tokenizers.TEXTS:
    text = ' '.join(text.split()) if kind == 'unigram' else text
    ids = ours.encode(text)
    assert min(ids) > 0 and ours.decode([*ids, ours.eos_id, 0, 0]) == text


@pytest.mark.hf
@pytest.mark.parametrize('kind', KINDS)
def test_rows_are_those_of_transformers(kind, tmp_path):
  transformers = pytest.importorskip('transformers')
  ours = vocabulary(tmp_path, KINDS[kind]())
  parsed = vocabulary(tmp_path, KINDS[kind](), special_tokens_in_text=True)
  theirs = transformers.PreTrainedTokenizerFast(
      tokenizer_file=str(tmp_path / 'tokenizer.json')
  )
  begin = read(tmp_path).begin
  assert begin == {
      'byte_level_with_bos': theirs.convert_tokens_to_ids('<|begin_of_text|>'),
      'byte_fallback': 1,
  }.get(kind)
  start = [] if begin is None else [begin]
  end = [1] if kind == 'unigram' else []
  for text in small_tokenizers.HARD:
    for mine, split in ((ours, True), (parsed, False)):
      expected = theirs(text, split_special_tokens=split).input_ids
      row = [x - mine.id_offset for x in mine.encode(text)]
      assert [*start, *row, *end] == expected, text


@pytest.mark.hf
def test_rows_of_sentencepiece_are_those_of_transformers(tmp_path):
  """As SeqIO reads `spiece.model`, T5's own file."""
  transformers = pytest.importorskip('transformers')
  pieces = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(small_tokenizers.TEXTS), model_writer=pieces,
      vocab_size=46, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
  )
  (tmp_path / 'spiece.model').write_bytes(pieces.getvalue())
  for name, content in (('config', {'model_type': 't5'}),
                        ('tokenizer_config', {'tokenizer_class': 'T5Tokenizer',
                                              'extra_ids': 0})):
    (tmp_path / f'{name}.json').write_text(json.dumps(content))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  ours = seqio.SentencePieceVocabulary(str(tmp_path / 'spiece.model'))
  for text in small_tokenizers.HARD:
    if '</s>' not in text:  # Text to SeqIO.
      assert [*ours.encode(text), ours.eos_id] == theirs(text).input_ids, text


@pytest.mark.slow
@pytest.mark.hf
def test_logits_of_a_text_of_id_0_equal_those_of_transformers(tmp_path):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  tokenizer = small_tokenizers.byte_level()
  config = {**models.SMALL, 'vocab_size': tokenizer.get_vocab_size()}
  folder = models.write_model(
      tmp_path / 'hf', config, models.random_tensors(config)
  )
  ours = vocabulary(folder, tokenizer)
  network = import_base.import_base(
      folder, tmp_path / 'base', file_format='safetensors'
  )
  ids = np.asarray([ours.encode('!!!! a! !!')]) - ours.id_offset
  assert (ids == 0).sum() > 2
  theirs = transformers.PreTrainedTokenizerFast(
      tokenizer_file=str(folder / 'tokenizer.json')
  )
  assert ids[0].tolist() == theirs('!!!! a! !!').input_ids
  np.testing.assert_allclose(
      models.jax_logits(network, tmp_path / 'base', ids),
      models.torch_logits(torch, folder, ids), rtol=1e-4, atol=1e-4,
  )


def test_the_base_keeps_what_a_chat_needs(tmp_path):
  config = {**models.SMALL, 'eos_token_id': [7, 2]}
  folder = models.write_model(
      tmp_path / 'hf', config, models.random_tensors(config)
  )
  words(folder, '<s> $A')
  files = ('generation_config.json', 'chat_template.jinja', 'tokenizer.model')
  for name in files:
    (folder / name).write_text('{"eos_token_id": [3, 4]}')
  base = tmp_path / 'base'
  import_base.import_base(folder, base, file_format='safetensors')
  for name in files:
    assert (base / name).read_text() == (folder / name).read_text()
  text = (base / 'model.gin').read_text()
  for line in ('  eos_id = 3\n', '  stop_ids = (4,)\n', '  num_ids = 96\n',
               'BOS_ID = 1\n', ': bos_id = 1.\n'):
    assert line in text
