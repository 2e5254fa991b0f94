# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of what the columns of rows mean."""

import pytest

from moe_peft.data import examples
from moe_peft.data import formats
from moe_peft.data import messages
from moe_peft.data import row_parsers
from moe_peft.data import rows
from tests import refusals

_USER = {'role': 'user', 'content': 'q'}
_ANSWER = {'role': 'assistant', 'content': 'a'}
_KEYS = row_parsers.Keys()


def _parse(row, name=None, keys=_KEYS):
  return formats.recognize(list(row), name, keys, 'x').parse(row, 'x')


def _messages(*pairs):
  return tuple({'role': role, 'content': text} for role, text in pairs)


@pytest.mark.parametrize(
    'row, expected',
    [
        ({'inputs': 'q', 'targets': 'a', 'id': 3}, rows.Row('q', 'a')),
        ({'prompt': 'q', 'completion': ' a'}, rows.Row('q', ' a')),
        ({'text': 'abc'}, rows.Row('', 'abc')),
        ({'messages': [_USER, _ANSWER]},
         messages.Conversation((_USER, _ANSWER))),
        ({'prompt': [_USER], 'completion': [_ANSWER]},
         messages.Conversation((_USER, _ANSWER), given=1)),
        ({'conversations': [{'from': 'human', 'value': 'q'},
                            {'from': 'gpt', 'value': 'a'}]},
         messages.Conversation((_USER, _ANSWER))),
        ({'input_ids': [4, 0, 5], 'labels': [-100, 0, 5]},
         examples.TokenIds((4, 0, 5), (False, True, True))),
        ({'input_ids': [4, 5]}, examples.TokenIds((4, 5), (True, True))),
        ({'input_ids': [0, 4, 5, 0], 'attention_mask': [0, 1, 1, 0]},
         examples.TokenIds((4, 5), (True, True))),
        ({'input_ids': [4, 5, 6], 'completion_mask': [0, 1, 1],
          'assistant_masks': [0, 0, 1]},
         examples.TokenIds((4, 5, 6), (False, False, True))),
        ({'prompt': 'q', 'chosen': 'a', 'rejected': 'b'},
         examples.Preference('q', 'a', 'b')),
        ({'chosen': 'why? so it is', 'rejected': 'why? not'},
         examples.Preference('why?', ' so it is', ' not')),
        ({'prompt': 'q', 'chosen': [_USER, _ANSWER],
          'rejected': [_USER, {**_ANSWER, 'content': 'b'}]},
         examples.Preference((_USER,), (_ANSWER,),
                             _messages(('assistant', 'b')))),
    ],
)  # fmt: skip
def test_formats_are_recognized_by_their_columns(row, expected):
  assert _parse(row) == expected


def test_alpaca_has_two_prompts():
  row = {'instruction': 'Say {input}.', 'input': '{x}', 'output': 'a'}
  with_input = _parse(row)
  assert '### Instruction:\nSay {input}.\n\n### Input:\n{x}\n\n' in (
      with_input.inputs
  )
  without = _parse({**row, 'input': ''})
  assert without == _parse({k: row[k] for k in ('instruction', 'output')})
  assert '### Input' not in without.inputs and without.targets == 'a'


def test_several_formats_that_fit_are_not_guessed_between():
  row = {'text': 'x', 'messages': [_USER, _ANSWER]}
  with refusals.refused('x', 'messages, text', 'row_format'):
    _parse(row)
  assert _parse(row, 'text') == rows.Row('', 'x')
  with refusals.refused('local.register_task.row_format', "'txt'", 'text'):
    _parse(row, 'txt')
  keys = row_parsers.Keys('text', 'other')
  assert _parse({**row, 'other': 'y'}, keys=keys) == rows.Row('x', 'y')


def test_columns_of_no_format_are_named():
  with refusals.refused('x', "'mesages'", "'messages'?", 'prompt'):
    _parse({'mesages': []})


def test_messages_keep_what_templates_may_need():
  call = {'role': 'assistant', 'content': None, 'tool_calls': [{'id': 1}]}
  row = {
      'messages': [
          {'role': 'system', 'content': ''},
          {'role': 'user', 'content': [{'type': 'text', 'text': 'q'}],
           'name': None},
          call,
          {'role': 'tool', 'content': '3'},
          _ANSWER,
      ],
      'tools': '[{"name": "f"}]',
      'chat_template_kwargs': {'enable_thinking': False},
  }
  parsed = _parse(row)
  assert parsed.messages[1] == _USER
  assert parsed.messages[2] == {**call, 'content': ''}
  assert parsed.tools == ({'name': 'f'},)
  assert parsed.variables == {'enable_thinking': False}
  assert parsed.answers == (2, 4)
  turns = {'from': ['human', 'gpt'], 'value': ['q', 'a']}
  assert _parse({'conversations': turns}).messages == (_USER, _ANSWER)
  # As columns, which tables of older versions have.
  columns = {'role': ['user', 'assistant'], 'content': ['q', 'a']}
  assert _parse({'messages': columns}).messages == (_USER, _ANSWER)


def test_answers_of_weight_0_are_not_learned():
  turns = [{'role': 'user', 'content': 'q'}, {**_ANSWER, 'weight': 0}] * 2
  turns[3] = {**_ANSWER, 'weight': 1}
  parsed = _parse({'messages': turns})
  assert parsed.answers == (3,)
  # Rows that begin alike are in one split, whatever of them is learned.
  assert parsed.key == _parse({'messages': turns[:1] + [_ANSWER]}).key
  other = {'role': 'user', 'content': 'q', 'weight': 0.5}  # Of no answer.
  assert _parse({'messages': [other, _ANSWER]}).answers == (1,)
  turns = [{'from': 'human', 'value': 'q'}, {'from': 'gpt', 'value': 'a'}] * 2
  turns[3] = {**turns[3], 'weight': 0}
  assert _parse({'conversations': turns}).answers == (1,)


def test_answers_of_a_pair_have_no_weight():
  turns = [{'role': 'user', 'content': 'q'}, {**_ANSWER, 'weight': 0}]
  pair = _parse({
      'chosen': turns, 'rejected': [turns[0], {**_ANSWER, 'content': 'b'}]
  })
  assert pair.chosen == (_ANSWER,)


def test_sharegpt_may_have_a_system_message_beside():
  turns = [{'from': 'user', 'value': 'q'}, {'from': 'gpt', 'value': 'a'}]
  parsed = _parse({'conversations': turns, 'system': 's'})
  assert [x['role'] for x in parsed.messages] == [
      'system', 'user', 'assistant'
  ]


@pytest.mark.parametrize(
    'row, names',
    [
        ({'messages': 'hello'}, ["'hello'"]),
        ({'messages': {'role': ['user'], 'content': []}}, ["'content': 0"]),
        ({'conversations': [{'from': ['gpt'], 'value': 'x'}]}, ["['gpt']"]),
        ({'messages': []}, ['assistant']),
        ({'messages': [_USER]}, ["'assistant'", "['user']"]),
        ({'messages': [_USER, {**_ANSWER, 'content': ' '}]}, ['message 2']),
        ({'messages': [_USER, {'content': 'x'}]}, ['message 2', 'role']),
        ({'messages': [{**_USER, 'content': [{'type': 'image'}]}, _ANSWER]},
         ['message 1', 'texts']),
        ({'messages': [_USER, _ANSWER], 'tools': '{'}, ["'tools'"]),
        ({'messages': [_USER, _ANSWER], 'tools': {'a': 1}}, ["'tools'"]),
        ({'messages': [_USER, _ANSWER], 'chat_template_kwargs': 'x'}, ["'x'"]),
        *(
            ({'messages': [_USER, _ANSWER], 'chat_template_kwargs': {name: 1}},
             ['chat_template_kwargs', name])
            for name in ('messages', 'tools', 'add_generation_prompt', 'self')
        ),
        ({'messages': [_USER, {**_ANSWER, 'tool_calls': 'x'}]}, ['tool_calls']),
        ({'messages': [_USER, {**_ANSWER, 'tool_calls': ['x']}]}, ["['x']"]),
        ({'messages': [_USER, {**_ANSWER, 'content': '', 'tool_calls': []}]},
         ['message 2']),
        ({'conversations': [{'from': 'me', 'value': 'q'}]}, ["'me'", 'human']),
        ({'conversations': 3}, ['3']),
        ({'conversations': 0.5, 'system': 's'}, ['0.5']),
        ({'prompt': 'q', 'completion': ['a']}, ["'completion'"]),
        ({'prompt': [_USER], 'completion': 'a'}, ["'completion'"]),
        ({'instruction': 'q', 'output': 'a', 'input': 3}, ["'input'"]),
        ({'prompt': 'q', 'chosen': 'a', 'rejected': 'a'}, ['different']),
        ({'prompt': 'q', 'chosen': 'a', 'rejected': 3}, ["'rejected'"]),
        ({'chosen': [_ANSWER], 'rejected': [_USER]}, ['different']),
        ({'input_ids': [1, -2]}, ["'input_ids'"]),
        ({'input_ids': [1, 2], 'labels': [2, 3]}, ["'labels'", '-100']),
        ({'input_ids': [1, 2], 'labels': [-100]}, ["'labels'"]),
        ({'input_ids': [1], 'labels': [-100]}, ['nothing']),
        ({'input_ids': [1], 'completion_mask': [0]}, ['nothing']),
        ({'input_ids': [1], 'attention_mask': [0]}, ['nothing']),
        ({'input_ids': [1, 2], 'attention_mask': [1]}, ["'attention_mask'"]),
        ({'input_ids': [1], 'assistant_masks': [2]}, ["'assistant_masks'"]),
        ({'messages': [_USER, {**_ANSWER, 'weight': 0.5}]}, ['weight', '0.5']),
        ({'messages': [_USER, {**_ANSWER, 'weight': 0}]}, ['assistant']),
        ({'text': ''}, ["'text'"]),
    ],
)  # fmt: skip
def test_rows_that_are_wrong_are_named(row, names):
  with refusals.refused('x', *names):
    _parse(row)
