# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of what people say as the ids that a model reads."""

import json

import pytest

from moe_peft.data import chat
from moe_peft.data import prompts
from moe_peft.data import token_texts
from moe_peft.data import vocabularies
from tests import refusals
from tests.data import small_chat

_MESSAGES = [
    {'role': 'system', 'content': 's'}, {'role': 'user', 'content': 'q'}
]


@pytest.fixture
def asked(tmp_path):
  vocabulary = small_chat.vocabulary(tmp_path, small_chat.CHATML)
  chats = chat.Options().chat(vocabulary)
  return prompts.Prompts(vocabulary, chats, ends=False)


def _text(asked, ids):
  return small_chat.text(asked.vocabulary, ids)


def test_lines_are_messages_of_users(asked):
  assert _text(asked, asked.of_line('[q', 'x')) == (
      '<s><|im_start|>user\n[q<|im_end|>\n<|im_start|>assistant\n'
  )
  assert _text(asked, asked.of_text('q')) == 'q'


def test_lines_may_hold_whole_conversations(asked):
  expected = asked.of_messages(_MESSAGES)
  assert _text(asked, expected).startswith('<s><|im_start|>system\ns<|im_end|>')
  for row in (_MESSAGES, {'messages': _MESSAGES, 'tools': None}):
    assert asked.of_line(json.dumps(row), 'x') == expected
  with refusals.refused('line 3', 'JSON'):
    asked.of_line('[{"role"', 'line 3')
  with refusals.refused('line 3', 'message 1'):
    asked.of_line('[{"content": "q"}]', 'line 3')


def test_models_without_templates_read_texts_that_end():
  asked = prompts.Prompts(vocabularies.byte_vocabulary(), None, ends=True)
  assert asked.of_line('q', 'x') == asked.of_text('q')
  ids = asked.of_messages(_MESSAGES)
  assert asked.vocabulary.decode(ids) == 'system: s\nuser: q'
  assert ids[-1] == asked.vocabulary.eos_id


def test_tokens_become_texts_one_by_one(asked):
  vocabulary = asked.vocabulary
  ids = vocabulary.encode('a\u20ac\ufffd!')
  stream = token_texts.TextStream(vocabulary)
  # Of a character in three bytes nothing is shown before the last one.
  assert [stream.add(i) for i in ids[:4]] == ['a', '', '', '\u20ac']
  assert ''.join(map(stream.add, ids[4:])) == '\ufffd!'
  stream = token_texts.TextStream(vocabulary)
  assert stream.add(ids[1]) == '' and stream.rest() == '\ufffd'
  ids = asked.of_line('q', 'x')
  texts = token_texts.texts(vocabulary, ids)
  assert texts[:3] == ['<s>', '<|im_start|>', 'u'] and len(texts) == len(ids)
  byte = vocabularies.byte_vocabulary()
  assert token_texts.texts(byte, [100, 1, 383]) == ['a', '</s>', '<extra_id_0>']


def test_signs_that_control_terminals_are_shown():
  assert token_texts.visible('a\x1b[31m\tb\n\x9b') == 'a\\x1b[31m\tb\n\\x9b'
