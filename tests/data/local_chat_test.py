# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of users' conversations, pairs of answers and tokens as tasks."""

import json
import logging

import numpy as np
import pytest
import seqio

from moe_peft.data import catalog
from moe_peft.data import lengths
from moe_peft.data import local
from moe_peft.data import prompts
from moe_peft.data import provenance
from moe_peft.data import registration
from moe_peft.data import token_tasks
from moe_peft.data import vocabularies
from tests import refusals
from tests.data import small_chat


@pytest.fixture(autouse=True)
def _forget_tasks(monkeypatch):
  # A command that ran before may have sent notes to the terminal alone.
  monkeypatch.setattr(logging.getLogger('moe_peft'), 'propagate', True)
  yield
  for name in [n for n in seqio.TaskRegistry.names() if n.startswith('my_')]:
    seqio.TaskRegistry.remove(name)
    registration.RECORDS.pop(name, None)


def _write(path, rows):
  text = ''.join(f'{json.dumps(row)}\n' for row in rows)
  path.write_text(text, encoding='utf-8')
  return str(path)


def _talk(*texts, **more):
  roles = ('user', 'assistant')
  return {
      'messages': [
          {'role': roles[i % 2], 'content': text}
          for i, text in enumerate(texts)
      ],
      **more,
  }


def _examples(name, split='train', lengths=None):
  dataset = catalog.get_task_or_mixture(name).get_dataset(
      lengths, split, shuffle=False
  )
  return list(dataset.as_numpy_iterator())


@pytest.fixture
def vocabulary(tmp_path):
  return small_chat.vocabulary(tmp_path, small_chat.CHATML)


def test_chats_are_a_task(tmp_path, vocabulary, caplog):
  path = _write(tmp_path / 'a.jsonl', [_talk('hi', 'ho', 'so?', 'yes')])
  with caplog.at_level(logging.INFO, 'moe_peft'):
    name = local.register_task('my_task', train=path, vocabulary=vocabulary)
  assert 'chat messages, examples: 2 of train' in caplog.text
  assert 'chat_template.jinja' in caplog.text
  first, second = _examples(name)
  show = lambda ids: small_chat.text(vocabulary, ids)
  assert show(first['targets']) == 'ho<|im_end|>'
  assert show(second['inputs']).endswith('so?<|im_end|>\n<|im_start|>'
                                         'assistant\n')
  assert isinstance(registration.RECORDS[name], token_tasks.TokenRecord)
  text = vocabulary.decode([*first['inputs'], *first['targets']])
  assert provenance.places(name, [text]) == [f'{path}, line 1']
  # Metrics compare texts.
  assert second['targets_pretokenized'] == b'yes'
  assert catalog.primary_metric(name) == 'exact_match'


def test_turns_and_templates_change_the_data(tmp_path, vocabulary):
  path = _write(tmp_path / 'a.jsonl', [_talk('hi', 'ho', 'so?', 'yes')])
  of = lambda name, **given: provenance.identities(
      local.register_task(name, train=path, vocabulary=vocabulary, **given)
  )
  then = of('my_default')
  provenance.check_identities(2, then, of('my_each', turns='each'))
  provenance.check_identities(2, then, of('my_day', chat_date='2020-01-01'))
  other = tmp_path / 'other.jinja'
  other.write_text(small_chat.CHATML.replace('\n', ' '))
  changed = {'turns': 'last', 'loss': 'all', 'template': str(other)}
  for option, value in changed.items():
    with refusals.refused(f'rows of my_{option}', 'ALLOW_CHANGED_DATA'):
      provenance.check_identities(
          2, then, of(f'my_{option}', **{option: value})
      )


def test_a_conversation_is_in_one_split(tmp_path, vocabulary):
  rows = [_talk(f'q{i}', 'a', 'more', f'b{i}') for i in range(60)]
  path = _write(tmp_path / 'a.jsonl', rows)
  name = local.register_task('my_task', data=path, vocabulary=vocabulary)
  firsts = [
      {small_chat.text(vocabulary, x['inputs']).split('\n')[1]
       for x in _examples(name, split)}
      for split in ('train', 'validation', 'test')
  ]
  assert sum(map(len, firsts)) == 60
  assert all(len(_examples(name, s)) == 2 * len(found) for s, found in zip(
      ('train', 'validation', 'test'), firsts, strict=True))


def test_models_without_templates_read_plain_dialogues(tmp_path):
  path = _write(tmp_path / 'a.jsonl', [
      _talk('hi', 'ho', 'so?', 'yes'), _talk('why?', 'so')
  ])
  bytes_ = vocabularies.byte_vocabulary()
  name = local.register_task('my_task', train=path, vocabulary=bytes_)
  assert [
      (x['inputs_pretokenized'], x['targets_pretokenized'])
      for x in _examples(name)
  ] == [(b'user: hi\nassistant: ho\nuser: so?', b'yes'), (b'why?', b'so')]
  name = local.register_task(
      'my_each', train=path, vocabulary=bytes_, turns='each'
  )
  assert len(_examples(name)) == 3
  for option in ({'turns': 'together'}, {'loss': 'all'}, {'template': 'x'}):
    with refusals.refused(f'local.register_task.{next(iter(option))}'):
      local.register_task('my_bad', train=path, vocabulary=bytes_, **option)


def test_dialogues_that_begin_with_their_only_answer(tmp_path, caplog):
  alone = {'messages': [{'role': 'assistant', 'content': 'welcome'}]}
  bad = _write(tmp_path / 'bad.jsonl', [alone])
  some = _write(tmp_path / 'some.jsonl', [alone, _talk('why?', 'so')])
  with caplog.at_level(logging.INFO, 'moe_peft'):
    assert len(_examples(local.register_task('my_task', train=some))) == 1
  assert 'Left out of train of my_task: 1 of 2 rows' in caplog.text
  assert f'the first is {some}, line 1.' in caplog.text
  with refusals.refused(f'{bad}, line 1', 'validation'):
    local.register_task('my_bad', train=some, validation=bad)


def test_answers_that_only_call_tools_need_a_template(tmp_path, vocabulary):
  call = {
      'role': 'assistant', 'content': '',
      'tool_calls': [{'function': {'name': 'look', 'arguments': {}}}],
  }
  asked, said = {'role': 'user', 'content': 'q'}, {
      'role': 'assistant', 'content': 'a'
  }
  for row in (
      {'messages': [asked, call]},
      {'prompt': [asked], 'chosen': [said], 'rejected': [call]},
  ):
    path = _write(tmp_path / 'a.jsonl', [row])
    with refusals.refused(f'{path}, line 1', 'calls tools'):
      local.register_task(
          'my_bad', train=path, vocabulary=vocabularies.byte_vocabulary()
      )
  # An answer behind a call is one.
  path = _write(tmp_path / 'a.jsonl', [
      {'messages': [asked, call, asked, said]}
  ])
  (example,) = _examples(local.register_task('my_task', train=path))
  assert example['targets_pretokenized'] == b'a'
  local.register_task('my_chat', train=path, vocabulary=vocabulary)


def test_pairs_of_answers_have_three_features(tmp_path, vocabulary):
  row = {'prompt': 'q', 'chosen': ' good', 'rejected': ' b'}
  path = _write(tmp_path / 'a.jsonl', [row])
  name = local.register_task('my_task', train=path, vocabulary=vocabulary)
  (example,) = _examples(name, lengths={'inputs': 4, 'targets': 8})
  show = lambda ids: small_chat.text(vocabulary, ids)
  assert {k: show(x) for k, x in example.items()} == {
      'prompt': 'q', 'chosen': ' good<|im_end|>', 'rejected': ' b<|im_end|>'
  }
  assert catalog.get_task_or_mixture(name).output_features.keys() == {
      'prompt', 'chosen', 'rejected'
  }
  # Their lengths are those of inputs and targets.
  with refusals.refused('TASK_FEATURE_LENGTHS', "'targets': 6"):
    catalog.check_feature_lengths(name, {'inputs': 4, 'targets': 5})


def test_questions_end_as_the_prompts_of_pairs_do(tmp_path, vocabulary):
  row = {'prompt': 'q', 'chosen': ' good', 'rejected': ' b'}
  path = _write(tmp_path / 'a.jsonl', [row])
  of_t5 = vocabularies.byte_vocabulary()
  for task, of_model in (('my_decoder', vocabulary), ('my_t5', of_t5)):
    name = local.register_task(task, train=path, vocabulary=of_model)
    asked = prompts.of_task(name, of_model, talks=False)
    assert asked.of_text('q') == _examples(name)[0]['prompt'].tolist()


def test_rows_of_tokens(tmp_path, vocabulary):
  rows = [
      {'input_ids': [1, 9, 10, 11, 3], 'labels': [-100, -100, 10, -100, 3]},
      {'input_ids': [9, 10], 'labels': [9, 10]},
  ]
  path = _write(tmp_path / 'a.jsonl', rows)
  name = local.register_task('my_task', train=path, vocabulary=vocabulary)
  first, second = _examples(name)
  offset = vocabulary.id_offset
  assert [(x[k] - offset).tolist() for x in (first, second)
          for k in ('inputs', 'targets')] == [
      [1, 9], [10, 11, 3], [], [9, 10]
  ]
  assert first['targets_loss_weights'].tolist() == [1, 0, 1]
  path = _write(tmp_path / 'b.jsonl', [{'input_ids': [999]}])
  with refusals.refused(f'{path}, line 1', '999'):
    local.register_task('my_bad', train=path, vocabulary=vocabulary)


def test_ids_beyond_a_file_whose_id_0_is_no_padding(tmp_path, vocabulary):
  shifted = small_chat.vocabulary(tmp_path, small_chat.CHATML, eos_id=0)
  assert shifted.id_offset == 1
  size = vocabulary.vocab_size
  good = _write(tmp_path / 'a.jsonl', [{'input_ids': [4, size - 1]}])
  local.register_task('my_task', train=good, vocabulary=shifted)
  bad = _write(tmp_path / 'b.jsonl', [{'input_ids': [4, size]}])
  with refusals.refused(f'{bad}, line 1', size):
    local.register_task('my_bad', train=bad, vocabulary=shifted)


def test_texts_are_learned_whole(tmp_path, vocabulary):
  path = _write(tmp_path / 'a.jsonl', [{'text': 'ab'}])
  name = local.register_task('my_task', train=path, vocabulary=vocabulary)
  (example,) = _examples(name)
  assert not example['inputs'].size
  assert small_chat.text(vocabulary, example['targets']) == 'ab<|im_end|>'


def test_a_file_of_texts_is_split_by_them(tmp_path, vocabulary, caplog):
  texts = [{'text': f'text {i % 50}'} for i in range(60)]
  path = _write(tmp_path / 'a.jsonl', texts)
  name = local.register_task('my_task', data=path, vocabulary=vocabulary)
  found = {
      split: [tuple(x['targets'].tolist()) for x in _examples(name, split)]
      for split in ('train', 'validation', 'test')
  }
  assert sum(map(len, found.values())) == 60
  assert not {*found['train']} & {*found['validation'], *found['test']}
  local.register_task(
      'my_leak', train=path, test=path, vocabulary=vocabulary
  )
  assert '60 of 60 rows of test are also in train' in caplog.text


def test_rows_of_tokens_are_split_by_what_is_given(tmp_path, vocabulary):
  begin, parts = 1, ('train', 'validation', 'test')
  rows = [
      {'input_ids': [begin, 9 + i % 20, 10 + i // 20, 3],
       'labels': [-100, -100, 10 + i // 20, 3]}
      for i in range(100)
  ]
  path = _write(tmp_path / 'a.jsonl', rows)
  name = local.register_task('my_task', data=path, vocabulary=vocabulary)
  given = [
      {tuple(x['inputs'].tolist()) for x in _examples(name, split)}
      for split in parts
  ]
  assert sum(map(len, given)) == 20
  # What begins every row asks nothing.
  for row in rows:
    row['labels'][1] = row['input_ids'][1]
  path = _write(tmp_path / 'b.jsonl', rows)
  name = local.register_task('my_texts', data=path, vocabulary=vocabulary)
  assert all(_examples(name, split) for split in parts)


def test_prompts_of_decoders_do_not_end(tmp_path, vocabulary):
  path = _write(tmp_path / 'a.jsonl', [{'prompt': 'q', 'completion': ' a'}])
  name = local.register_task('my_task', train=path, vocabulary=vocabulary)
  (example,) = _examples(name)
  assert small_chat.text(vocabulary, example['inputs']) == 'q'
  # T5's do.
  name = local.register_task(
      'my_t5', train=path, vocabulary=vocabularies.byte_vocabulary()
  )
  assert _examples(name)[0]['inputs'][-1] == 1


def _lengths(name):
  return [
      (len(x['inputs']), len(x['targets']))
      for x in _examples(name, lengths={'inputs': 40, 'targets': 5})
  ]


@pytest.mark.parametrize('kind', ['chat', 'text'])
def test_what_is_too_long(tmp_path, vocabulary, caplog, kind):
  row = lambda q, a: {
      'chat': _talk(q, a), 'text': {'inputs': q, 'targets': a}
  }[kind]
  rows = [row('x', 'y'), row('x' * 60, 'y'), row('x', 'y' * 5)]
  path = _write(tmp_path / 'a.jsonl', rows)
  made = {
      policy: local.register_task(
          f'my_{policy}', train=path, vocabulary=vocabulary, too_long=policy
      )
      for policy in lengths.POLICIES
  }
  (first,) = _lengths(made['drop'])
  assert _lengths(made['cut']) == [first, (40, 2)]
  limits = {'inputs': 40, 'targets': 5}
  with caplog.at_level(logging.INFO, 'moe_peft'):
    catalog.check_feature_lengths(made['drop'], limits)
    catalog.check_feature_lengths(made['cut'], limits)
  assert 'my_drop: 2 of 3 examples of train' in caplog.text
  assert 'my_cut: 1 of 3 examples of train' in caplog.text
  assert 'cut at the left' in caplog.text
  with refusals.refused('TASK_FEATURE_LENGTHS', f'{path}, line 2'):
    catalog.check_feature_lengths(made['error'], limits)
  # The end of a cut prompt is what is asked.
  cut = _examples(made['cut'], lengths=limits)[1]['inputs']
  whole = _examples(made['cut'])[1]['inputs']
  np.testing.assert_array_equal(cut[:-1], whole[-40:][:39])
  # A length may leave room for the end of a sequence alone.
  least = _examples(made['cut'], lengths={'inputs': 1, 'targets': 5})
  assert [len(x['inputs']) for x in least] == [1, 1]


@pytest.mark.parametrize(
    'option, value', [('too_long', 'cat'), ('turns', 'all'), ('loss', 'none')]
)
def test_options_that_do_not_exist(tmp_path, vocabulary, option, value):
  path = _write(tmp_path / 'a.jsonl', [_talk('q', 'a')])
  with refusals.refused(f'local.register_task.{option}', repr(value)):
    local.register_task(
        'my_task', train=path, vocabulary=vocabulary, **{option: value}
    )


@pytest.mark.slow
def test_choices_are_compared_whole(tmp_path):
  path = _write(tmp_path / 'a.jsonl', [{'inputs': 'q', 'targets': 'a'}])
  with refusals.refused('local.register_task.too_long'):
    local.register_task(
        'my_task', train=path, choices=['a', 'b'], too_long='drop'
    )
