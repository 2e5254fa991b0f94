# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The Jinja template with which a chat model writes messages as one text.

It comes with the model, from somebody whom nobody vouches for, so it is
rendered in a sandbox: it sees plain values of JSON, changes none of them, and
is stopped where it works, or its text grows, without end. Names, filters and
tags are those that transformers gives to templates.
"""

from collections.abc import Callable, Mapping, Sequence
import datetime
import json
import os
from pathlib import Path
import re
from typing import Any

import jinja2
from jinja2 import ext
from jinja2 import nodes

from moe_peft import errors
from moe_peft.data import template_sandbox

FILE = 'chat_template.jinja'
CONFIG = 'tokenizer_config.json'
# Templates may write the day into a prompt. Runs and their answers are to be
# the same tomorrow.
DATE = '2026-01-01'
_NAMES = ('bos_token', 'eos_token', 'unk_token', 'pad_token', 'sep_token',
          'cls_token', 'mask_token')
# The template of models that know these tokens and bring no template.
CHATML = """\
{% for message in messages %}\
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
CHATML_TOKENS = ('<|im_start|>', '<|im_end|>')
# Marks of what stands between the tags generation and endgeneration, from the
# last of Unicode's private areas, which no text uses.
_BEGIN, _END = '\U0010fffc', '\U0010fffd'
_MAX_CHARACTERS = 10_000_000


class _Generation(ext.Extension):
  """The tag that says which part of a text the assistant has written."""

  tags = {'generation'}

  def parse(self, parser):
    line = next(parser.stream).lineno
    body = parser.parse_statements(['name:endgeneration'], drop_needle=True)
    call = self.call_method('_mark')
    return nodes.CallBlock(call, [], [], body).set_lineno(line)

  def _mark(self, caller):
    return f'{_BEGIN}{caller()}{_END}'


class ChatTemplate:
  """A template, compiled."""

  def __init__(
      self,
      source: str,
      special_tokens: Mapping[str, str],
      date: str = DATE,
      where: str = FILE,
  ):
    """Compiles it.

    Args:
      source: The template.
      special_tokens: Texts of `bos_token`, `eos_token` and so on.
      date: The day that templates see as today, as 2026-01-31.
      where: Its file, for messages.

    Raises:
      errors.UserError: It is no template, or the date is none.
    """
    self.where, self.special_tokens = where, dict(special_tokens)
    try:
      now = datetime.datetime.strptime(date, '%Y-%m-%d')
    except (TypeError, ValueError) as error:
      raise errors.UserError(
          f'{date!r} is no date.', 'local.register_task.chat_date',
          f"Write it as '{DATE}'.",
      ) from error
    self._environment = environment = template_sandbox.Environment(
        trim_blocks=True, lstrip_blocks=True,
        extensions=[ext.loopcontrols, _Generation],
    )
    environment.filters['tojson'] = _to_json
    environment.globals['raise_exception'] = _raise
    environment.globals['strftime_now'] = now.strftime
    with errors.refused('It is no chat template.', where):
      self._template = environment.from_string(source)
    self.marks_answers = 'endgeneration' in source

  def render(
      self,
      messages: Sequence[Mapping[str, Any]],
      tools: Sequence[Any] | None = None,
      variables: Mapping[str, Any] | None = None,
      place: str = '',
      add_generation_prompt: bool = False,
  ) -> tuple[str, list[tuple[int, int]]]:
    """The text of messages.

    Args:
      messages: Objects with `role` and `content`.
      tools: Descriptions of tools.
      variables: Further variables.
      place: Where the messages are from, for errors.
      add_generation_prompt: Whether the text ends where an answer begins.

    Returns:
      The text, and begin and end of each of its parts that the template marks
      as the assistant's.

    Raises:
      errors.UserError: The template refuses the messages, or fails.
    """
    with errors.refused(
        f'The chat template {self.where} refuses the messages.', place
    ):
      given = {**(variables or {}), 'messages': messages, 'tools': tools}
      plain = json.dumps(given, ensure_ascii=False)
      if _BEGIN in plain or _END in plain:
        raise ValueError('they hold characters of the last private area')
      self._environment.restart()
      parts, size = [], 0
      for part in self._template.generate(
          **{'documents': None, **self.special_tokens, **json.loads(plain)},
          add_generation_prompt=add_generation_prompt,
      ):
        parts.append(part)
        size += len(part)
        if size > _MAX_CHARACTERS:
          raise ValueError(f'its text has more than {_MAX_CHARACTERS:,} '
                           'characters')
    return _spans(''.join(parts))


def find(
    folder: str | os.PathLike,
    given: str | None,
    is_token: Callable[[str], bool],
) -> tuple[str, str]:
  """The template of a model.

  Args:
    folder: Where its `tokenizer.json` is.
    given: Instead of the template that lies there: 'chatml', or a path.
    is_token: Whether a text is a token of the model.

  Returns:
    Its source, and where it is from.

  Raises:
    errors.UserError: There is none, or it cannot be read.
  """
  where = 'local.register_task.template'
  if given not in (None, 'chatml'):
    return _read(Path(given).expanduser()), given
  file = Path(folder) / FILE
  if given is None and file.is_file():
    return _read(file), str(file)
  if given is None and (source := _in_config(folder)) is not None:
    return source, str(Path(folder) / CONFIG)
  if not all(map(is_token, CHATML_TOKENS)):
    raise errors.UserError(
        f'{folder} holds no chat template ({FILE}), and the vocabulary lacks '
        f'the tokens of ChatML, {" and ".join(CHATML_TOKENS)}.', where,
        'Give the path of a template, or rows of prompts and completions.',
    )
  return CHATML, 'ChatML'


def _read(file: Path) -> str:
  try:
    return file.read_text(encoding='utf-8')
  except (OSError, ValueError) as error:
    raise errors.UserError(f'It cannot be read: {error}.', file) from error


def _in_config(folder) -> str | None:
  """The template in the configuration of the tokenizer, as of 2024."""
  found = _config(folder).get('chat_template')
  if isinstance(found, list):  # Several, each with its name.
    named = [x for x in found if isinstance(x, dict)]
    found = next(
        (x.get('template') for x in named if x.get('name') == 'default'), 0
    )
  if not isinstance(found, str | None):
    raise errors.UserError(
        'chat_template must be a text, or a list with one named default.',
        Path(folder) / CONFIG,
        'Give the path of a template by local.register_task.template.',
    )
  return found


def special_tokens(folder: str | os.PathLike) -> dict[str, str]:
  """Texts of special tokens by their names in templates."""
  found = {}
  config = _config(folder)
  for name in _NAMES:
    value = config.get(name)
    value = value.get('content') if isinstance(value, dict) else value
    if isinstance(value, str):
      found[name] = value
  return found


def _config(folder) -> Mapping[str, Any]:
  file = Path(folder) / CONFIG
  try:
    value = json.loads(_read(file)) if file.is_file() else {}
  except (ValueError, RecursionError) as error:
    raise errors.UserError(f'It is no JSON: {error}.', file) from error
  return value if isinstance(value, dict) else {}


def _to_json(value, ensure_ascii=False, indent=None, separators=None,
             sort_keys=False) -> str:
  # Jinja's own escapes what is special in HTML.
  return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent,
                    separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
  raise jinja2.exceptions.TemplateError(message)


def _spans(marked: str) -> tuple[str, list[tuple[int, int]]]:
  """The text without marks, and where the marked parts are in it."""
  text, spans, begin = '', [], 0
  for part in re.split(f'([{_BEGIN}{_END}])', marked):
    if part == _BEGIN:
      begin = len(text)
    elif part == _END:
      spans.append((begin, len(text)))
    else:
      text += part
  return text, spans
