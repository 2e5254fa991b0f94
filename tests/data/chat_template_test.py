# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of chat templates in their sandbox.

With CHAT_TEMPLATES=DIR, a folder of published templates (`models/templates` of
llama.cpp, in the source package of llama-cpp-python), each is rendered.
"""

import json
import os
from pathlib import Path

import pytest

from moe_peft.data import chat_template
from moe_peft.data import template_sandbox
from tests import refusals

_MESSAGES = [{'role': 'user', 'content': 'q'}]


def _render(source, messages=_MESSAGES, **options):
  template = chat_template.ChatTemplate(source, {'bos_token': '<s>'})
  return template.render(messages, place='x', **options)


def test_names_that_templates_expect():
  source = (
      '{{ bos_token }}{% for m in messages %}{% if m.role == "skip" %}'
      '{% continue %}{% endif %}{{ m | tojson }}{% endfor %}'
      '{{ tools | tojson(indent=1) }}{{ documents }}{{ x }}'
      '{{ strftime_now("%d %b %Y") }}{% if add_generation_prompt %}!{% endif %}'
  )
  messages = [{'role': 'skip', 'content': ''}, {'content': '<é>'}]
  text, spans = _render(
      source, messages, tools=[1], variables={'x': 'y'},
      add_generation_prompt=True,
  )
  assert text == '<s>{"content": "<é>"}[\n 1\n]Noney01 Jan 2026!'
  assert spans == []


def test_a_long_conversation_is_rendered():
  messages = [{'role': 'user', 'content': 'word ' * 400}] * 300
  source = (
      '{% for m in messages %}{% set c = m.content.replace("<think>", "") %}'
      '{{ m.role ~ "\n" ~ c | trim + "\n" }}{% if loop.index0 == '
      'messages | length - 1 %}{{ [m] | tojson }}{% endif %}{% endfor %}'
  )
  text, _ = _render(source, messages)
  assert text.count('word') == 301 * 400


def test_each_text_has_all_of_the_work():
  template = chat_template.ChatTemplate('{{ "x" * n }}', {})
  for _ in range(3):
    n = template_sandbox._MAX_WORK // 4
    text, _ = template.render([], variables={'n': n})
    assert len(text) == n


def test_generation_tags_are_no_part_of_the_text():
  text, spans = _render(
      'a{% generation %}bc{% endgeneration %}d{% generation %}{% for i in '
      '[1, 2] %}{{ i }}{% endfor %}{% endgeneration %}'
  )
  assert (text, spans) == ('abcd12', [(1, 3), (4, 6)])


@pytest.mark.parametrize(
    'source, name',
    [
        ('{{ raise_exception("roles must alternate") }}', 'alternate'),
        ('{{ absent.name }}', 'absent'),
        ('{{ messages.append(1) }}', 'Security'),
        ('{{ "".__class__.__mro__ }}', 'Security'),
        ('{{ cycler.__init__.__globals__ }}', 'Security'),
        ('{{ "x" * 100000000 }}', 'long'),
        ('{{ "x"|center(999999999) }}', 'long'),
        ('{{ "%999999999d" % 1 }}', 'long'),
        ('{{ "x".ljust(999999999) }}', 'long'),
        ('{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}'
         '{% endfor %}', 'long'),
        ('{% macro f(x) %}{% if x %}{{ f(x - 1) }}{{ f(x - 1) }}{% endif %}'
         '{% endmacro %}{{ f(40) }}', 'long'),
        *((f'{{% set n = namespace(x="a") %}}{{% for i in range(99) %}}'
           f'{{% set n.x = {x} %}}{{% endfor %}}', 'long')
          for x in ('n.x ~ n.x', 'n.x + n.x', '[n.x, n.x]',
                    'n.x|replace("a", "aa")', '"{0}{0}".format(n.x)',
                    'dict(a=n.x, b=n.x)')),
        ('{{ 9 ** 999999 }}', 'long'),
        ('{% for i in range(99999) %}{{ "x" * 1000 }}{% endfor %}', '10,000,'),
        ('{{ range(10000000) | list | length }}', 'Range'),
    ],
)  # fmt: skip
def test_templates_that_do_more_than_write_are_stopped(source, name):
  with refusals.refused('x', 'chat template', name):
    _render(source)


def test_templates_and_dates_that_are_none():
  with refusals.refused('chat_template.jinja', 'endfor'):
    _render('{% for m in messages %}')
  with refusals.refused('local.register_task.chat_date', "'tomorrow'"):
    chat_template.ChatTemplate('', {}, 'tomorrow')


def test_messages_with_characters_of_ours():
  with refusals.refused('x', 'private'):
    _render('', [{'role': 'user', 'content': '\U0010fffc'}])


def _write(folder, config=None, template=None):
  if config is not None:
    (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  if template is not None:
    (folder / 'chat_template.jinja').write_text(template)


def test_where_a_template_is_found(tmp_path):
  find = lambda: chat_template.find(tmp_path, None, lambda token: False)
  with refusals.refused('local.register_task.template', 'ChatML'):
    find()
  _write(tmp_path, {'chat_template': 'one', 'bos_token': {'content': 'B'}})
  assert find()[0] == 'one'
  assert chat_template.special_tokens(tmp_path) == {'bos_token': 'B'}
  named = [{'name': 'tool_use', 'template': 'x'},
           {'name': 'default', 'template': 'two'}]
  _write(tmp_path, {'chat_template': named})
  assert find()[0] == 'two'
  for wrong in (7, [], {}, named[:1], [{'name': 'default', 'template': 5}]):
    _write(tmp_path, {'chat_template': wrong})
    with refusals.refused(tmp_path / 'tokenizer_config.json', 'default'):
      find()
  _write(tmp_path, template='three')
  assert find() == ('three', str(tmp_path / 'chat_template.jinja'))


@pytest.mark.parametrize('config', ['{', '[' * 100_000, '[]'])
def test_a_damaged_configuration(tmp_path, config):
  (tmp_path / 'tokenizer_config.json').write_text(config)
  if config == '[]':
    assert chat_template.special_tokens(tmp_path) == {}
    return
  with refusals.refused(tmp_path / 'tokenizer_config.json'):
    chat_template.special_tokens(tmp_path)


def test_published_templates_render():
  folder = os.environ.get('CHAT_TEMPLATES')
  if not folder:
    pytest.skip('CHAT_TEMPLATES names no folder of templates')
  messages = [
      {'role': 'user', 'content': 'one'}, {'role': 'assistant', 'content': '1'},
      {'role': 'user', 'content': 'two'}, {'role': 'assistant', 'content': '2'},
  ]
  failed = []
  files = sorted(Path(folder).glob('*.jinja'))
  for file in files:
    special = {'bos_token': '<s>', 'eos_token': '</s>'}
    template = chat_template.ChatTemplate(
        file.read_text(encoding='utf-8'), special
    )
    try:
      assert 'two' in template.render(messages)[0]
    except Exception as error:
      failed.append(f'{file.name}: {error}')
  # Four want tools or functions.
  assert len(files) >= 60 and len(failed) <= 4, failed
