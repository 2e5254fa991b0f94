# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A small chat model's folder: a tokenizer and a template, made here."""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers

from moe_peft.data import vocabularies

BOS, START, END, PAD = '<s>', '<|im_start|>', '<|im_end|>', '<pad>'
SPECIAL = (PAD, BOS, START, END)
CHATML = (
    '{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n'
    '{{ m.content }}<|im_end|>\n{% endfor %}'
    '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)


def write_tokenizer(folder: Path, template: str | None = None) -> str:
  """Writes `tokenizer.json` and its configuration; returns the former's path.

  The tokens are bytes, with the special ones before them.
  """
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocab = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
  tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges=[]))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens(list(SPECIAL))
  path = folder / 'tokenizer.json'
  tokenizer.save(str(path))
  config = {'bos_token': BOS, 'eos_token': END}
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  if template is not None:
    (folder / 'chat_template.jinja').write_text(template, encoding='utf-8')
  return str(path)


def vocabulary(
    folder: Path, template: str | None = None, **options: Any
) -> vocabularies.TokenizerVocabulary:
  """The vocabulary of such a folder, whose end is that of a turn."""
  file = write_tokenizer(folder, template)
  options = {'eos_id': SPECIAL.index(END), **options}
  return vocabularies.TokenizerVocabulary(file, **options)


def text(of: vocabularies.TokenizerVocabulary, ids: Any) -> str:
  """The text of ids of data sets, special tokens included."""
  return of.tokenizer.decode(
      [i - of.id_offset for i in ids], skip_special_tokens=False
  )
