# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Small tokenizers of the kinds that models on the Hub have."""

import json

import pytest

tokenizers = pytest.importorskip('tokenizers')

TEXTS = (
    'a small cat sat on the mat',
    'the bat and the cat sat there, and then! What a day it was.',
    'Nine hens; 12 eggs!  Größe: 3.5 (naïve?) end',
)
# What tokenizers disagree about: spaces, digits, unknown characters, what
# looks like special tokens.
HARD = (
    'the cat sat', '  two  spaces ', '!', '!!!! a!', 'Größe', '漢字 and 😀',
    'tab\tand\nline', '1234 5', '</s> <|im_end|> <s>', '',
)


def word_level(tokens, num_special=3, unk_token=None):
  """A word an id; the first tokens are special."""
  model = tokenizers.models.WordLevel(
      {token: i for i, token in enumerate(tokens)}, unk_token or tokens[-1]
  )
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  tokenizer.add_special_tokens(list(tokens[:num_special]))
  return tokenizer


def byte_level(special=('<|endoftext|>', '<|im_start|>', '<|im_end|>')):
  """As Qwen: id 0 is `!`, special tokens come last, nothing begins a row."""
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.normalizer = tokenizers.normalizers.NFC()
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
      add_prefix_space=False
  )
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
  trainer = tokenizers.trainers.BpeTrainer(
      vocab_size=300, show_progress=False,
      initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
  )
  tokenizer.train_from_iterator(TEXTS, trainer)
  tokenizer.add_special_tokens(list(special))
  return tokenizer


def byte_level_with_bos():
  """As LLaMA 3: `!` is 0 too, and the post-processor begins the row."""
  tokenizer = byte_level(('<|begin_of_text|>', '<|end_of_text|>', '<|eot_id|>'))
  begin = '<|begin_of_text|>'
  tokenizer.post_processor = tokenizers.processors.Sequence([
      tokenizers.processors.ByteLevel(trim_offsets=True),
      tokenizers.processors.TemplateProcessing(
          single=f'{begin} $A',
          special_tokens=[(begin, tokenizer.token_to_id(begin))],
      ),
  ])
  return tokenizer


def byte_fallback():
  """As LLaMA 2 and Gemma: pieces of `▁`, unknown characters are bytes."""
  learned = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token='<unk>'))
  trainer = tokenizers.trainers.BpeTrainer(
      vocab_size=80, special_tokens=['<unk>'], show_progress=False
  )
  normalized = [text.replace(' ', '▁') for text in TEXTS]
  learned.train_from_iterator(normalized, trainer)
  model = json.loads(learned.to_str())['model']
  first = ['<unk>', '<s>', '</s>', *(f'<0x{i:02X}>' for i in range(256))]
  pieces = sorted(model['vocab'], key=model['vocab'].get)
  names = dict.fromkeys([*first, *pieces])
  tokenizer = tokenizers.Tokenizer(
      tokenizers.models.BPE(
          {name: i for i, name in enumerate(names)},
          [tuple(merge) for merge in model['merges']],
          unk_token='<unk>', fuse_unk=True, byte_fallback=True,
      )
  )
  tokenizer.normalizer = tokenizers.normalizers.Replace(' ', '▁')
  tokenizer.decoder = tokenizers.decoders.Sequence([
      tokenizers.decoders.Replace('▁', ' '),
      tokenizers.decoders.ByteFallback(),
      tokenizers.decoders.Fuse(),
  ])
  tokenizer.add_special_tokens(['<unk>', '<s>', '</s>'])
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
      single='<s> $A', special_tokens=[('<s>', 1)]
  )
  return tokenizer


def unigram():
  """As T5: pieces with likelihoods, and an end behind every text."""
  tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram())
  tokenizer.normalizer = tokenizers.normalizers.NFKC()
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  tokenizer.decoder = tokenizers.decoders.Metaspace()
  trainer = tokenizers.trainers.UnigramTrainer(
      vocab_size=90, special_tokens=['<pad>', '</s>', '<unk>'],
      unk_token='<unk>', show_progress=False,
  )
  tokenizer.train_from_iterator(TEXTS, trainer)
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
      single='$A </s>', special_tokens=[('</s>', 1)]
  )
  return tokenizer
