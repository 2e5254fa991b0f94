# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Small good files of rows, of every format that a task is made of."""

from collections.abc import Callable
import csv
import gzip
import io
import itertools
import json
from pathlib import Path
from typing import Any

from tests.fuzz import formats

_ROWS = [
    {'inputs': f'a {x}', 'targets': x, 'choices': ['b', 'c']} for x in 'bcbc'
]
_SAYS = lambda role, text: {'role': role, 'content': text}
_TURNS = [
    _SAYS('system', 'be kind'), _SAYS('user', 'hi <|im_end|>'),
    _SAYS('assistant', 'ho'), _SAYS('user', 'and?'), _SAYS('assistant', 'no'),
]
_TOOL = {'type': 'function', 'function': {'name': 'f', 'parameters': {}}}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    'messages': [
        {'messages': _TURNS, 'tools': [_TOOL],
         'chat_template_kwargs': {'think': True}},
        {'messages': [_SAYS('user', [{'type': 'text', 'text': 'a'}]),
                      _SAYS('assistant', 'b')]},
    ],
    'sharegpt': [{'conversations': [
        {'from': 'human', 'value': 'a'}, {'from': 'gpt', 'value': 'b'}
    ], 'system': 's'}],
    'completion': [{'prompt': 'a', 'completion': 'b'}],
    'completion_messages': [{'prompt': _TURNS[:2], 'completion': _TURNS[2:3]}],
    'alpaca': [{'instruction': 'a', 'input': 'b', 'output': 'c'}],
    'preference': [
        {'prompt': 'a', 'chosen': 'b c', 'rejected': 'b d'},
        {'chosen': 'a b c', 'rejected': 'a b d'},
    ],
    'preference_messages': [
        {'chosen': _TURNS[1:3], 'rejected': [_TURNS[1], _TURNS[4]]},
        {'prompt': 'a', 'chosen': [_TURNS[2]], 'rejected': [_TURNS[4]]},
    ],
    'text': [{'text': 'a b'}],
    'tokens': [{'input_ids': [5, 6, 7], 'labels': [-100, 6, 7]}],
}
TEMPLATE = """\
{{- bos_token }}
{%- set last = namespace(role='') %}
{%- if tools %}
{{- '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role not in ['system', 'user', 'assistant', 'tool'] %}
{{- raise_exception('Unknown role ' ~ message.role) }}
{%- endif %}
{%- set last.role = message['role'] %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{ message.content | trim }}<|im_end|>{% endgeneration %}
{%- else %}{{ message.content.split('</think>')[-1] }}<|im_end|>{% endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""


def _lines(rows: list[dict[str, Any]]) -> bytes:
  return ''.join(json.dumps(row) + '\n' for row in rows).encode()


def write_rows(folder: Path) -> None:
  """JSON Lines."""
  folder.mkdir(parents=True)
  (folder / 'rows.jsonl').write_bytes(_lines(_ROWS))
  (folder / 'rows.jsonl.gz').write_bytes(gzip.compress(_lines(_ROWS)))


def write_records(folder: Path) -> None:
  """TFRecord."""
  folder.mkdir(parents=True)
  records = formats.tfrecords()
  (folder / 'rows.tfrecord').write_bytes(records)
  (folder / 'rows.tfrecord.gz').write_bytes(gzip.compress(records))


def write_tables(folder: Path) -> None:
  """CSV, TSV, and an array of JSON."""
  folder.mkdir(parents=True)
  rows = [{'inputs': f'a, "{i}"\nb', 'targets': 'c\td'} for i in range(3)]
  for name, delimiter in (('rows.csv', ','), ('rows.tsv', '\t')):
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0], delimiter=delimiter)
    table.writeheader()
    table.writerows(rows)
    (folder / name).write_bytes(text.getvalue().encode())
  (folder / 'rows.csv.gz').write_bytes(
      gzip.compress((folder / 'rows.csv').read_bytes())
  )
  (folder / 'rows.json').write_text(json.dumps(rows))


def write_arrow(folder: Path) -> None:
  """Parquet, and a folder of the library `datasets`."""
  import pyarrow as pa
  from pyarrow import parquet

  saved = folder / 'saved'
  saved.mkdir(parents=True)
  table = pa.Table.from_pylist(
      [{'messages': [_TURNS[1], _TURNS[2]], 'number': 3, 'ids': [1, 2]}] * 3
  )
  parquet.write_table(table, folder / 'rows.parquet')
  with pa.ipc.new_stream(saved / 'data.arrow', table.schema) as stream:
    stream.write_table(table)
  (saved / 'state.json').write_text(json.dumps(
      {'_data_files': [{'filename': 'data.arrow'}], '_split': 'train'}
  ))


def write_conversations(folder: Path) -> None:
  """Rows of every format for chats, beside a model's tokenizer."""
  _write_model(folder)
  for name, rows in CONVERSATIONS.items():
    (folder / f'{name}.jsonl').write_bytes(_lines(rows))


def write_template(folder: Path) -> None:
  """A chat template, and what it is given."""
  _write_model(folder)
  (folder / 'messages.jsonl').write_bytes(_lines(CONVERSATIONS['messages']))


def write_token_ids(folder: Path) -> None:
  """A LLaMA with all files that name special ids."""
  from tests import cases_test
  from tests.data import small_chat

  cases_test.llama(folder)
  small_chat.write_tokenizer(folder, TEMPLATE)
  (folder / 'generation_config.json').write_text(json.dumps(
      {'eos_token_id': [3, 2], 'bos_token_id': 1, 'do_sample': True}
  ))


def write_tokenizer(folder: Path) -> None:
  """A `tokenizer.json`."""
  folder.mkdir(parents=True)
  (folder / 'tokenizer.json').write_text(json.dumps(formats.tokenizer()))


def _write_model(folder: Path) -> None:
  from tests.data import small_chat

  folder.mkdir(parents=True)
  small_chat.write_tokenizer(folder, TEMPLATE)


def read_tokenizer(folder: Path, out: Path) -> None:
  """Encodes and decodes a text."""
  del out
  from moe_peft.data import vocabularies

  vocabulary = vocabularies.TokenizerVocabulary(
      str(folder / 'tokenizer.json'), 2
  )
  ids = vocabulary.encode('abc ab  <s> é\n\u2028 12 x' + ' a' * 50)
  vocabulary.decode([0, vocabulary.vocab_size, *ids])


def read_rows(folder: Path, out: Path) -> None:
  """Reads every file of inputs, targets and choices."""
  del out
  from moe_peft.data import row_parsers
  from moe_peft.data import row_reader

  keys = row_parsers.Keys('inputs', 'targets', 'choices')
  read = lambda file: row_reader.RowReader(keys, None, lambda _: None)(file)
  _each(read, map(str, sorted(folder.iterdir())))


def read_tables(folder: Path, out: Path) -> None:
  """Reads every file and folder, whatever its columns are."""
  del out
  from moe_peft.data import row_parsers
  from moe_peft.data import row_reader

  keys = row_parsers.Keys()
  read = lambda file: row_reader.RowReader(keys, None, lambda _: None)(file)
  _each(read, map(str, sorted(folder.iterdir())))


def read_conversations(folder: Path, out: Path) -> None:
  """Makes a task of each file, with the tokenizer and template beside it."""
  del out
  import seqio

  from moe_peft.data import local
  from moe_peft.data import registration
  from moe_peft.data import vocabularies
  from tests.data import small_chat

  vocabulary = vocabularies.TokenizerVocabulary(
      str(folder / 'tokenizer.json'), small_chat.SPECIAL.index(small_chat.END)
  )
  turns = itertools.cycle(('each', 'together'))

  def read(file):
    conversations = file.stem.endswith(('messages', 'sharegpt'))
    try:
      local.register_task(
          'fuzz', str(file), vocabulary=vocabulary,
          turns=next(turns) if conversations else None,
      )
    finally:
      if registration.RECORDS.pop('fuzz', None):
        seqio.TaskRegistry.remove('fuzz')

  _each(read, sorted(folder.glob('*.jsonl')))


def _each(read: Callable[[Any], object], files: Any) -> None:
  """Reads all files, whichever of them are refused; then one is."""
  from moe_peft import errors

  refused = None
  for file in files:
    try:
      read(file)
    except errors.UserError as error:
      refused = error
  if refused:
    raise refused
