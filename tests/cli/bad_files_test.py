# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Files that are wrong: rows of data, and what runs and studies leave."""

import gzip
import os

import gin
import pytest

from tests import run_folder
from tests.cli import refusal
from tests.training import tiny

refusals = refusal.refusals

GOOD = '{"inputs": "a", "targets": "b"}\n'
ROWS = [
    # The second line of a JSON Lines file; what the message must name.
    ('{"inputs": NaN, "targets": "b"}', 'NaN'),
    ('{"inputs": "a", "targets": "b", "x": Infinity}', 'Infinity'),
    ('{"inputs": "a", "targets": "b", "x": [-Infinity]}', '-Infinity'),
    ('{"inputs": "a", "targets": "b", "inputs": "c"}', "'inputs'", 'twice'),
    ('{"inputs": "a", "targets": "b", "x": {"y": 1, "y": 2}}', "'y'", 'twice'),
    ('{"inputs": "a", "targets": "\\ud800"}', 'surrogate'),
    ('{"inputs": "a\\udc00", "targets": "b"}', 'surrogate'),
    ('{"inputs": "a", "targets": "b"', 'JSON'),
    ('{"inputs": "a", "targets": "b"} {}', 'JSON'),
    ("{'inputs': 'a', 'targets': 'b'}", 'JSON'),
    ('{"inputs": "a", "targets": "b",}', 'JSON'),
    ('[' * 100_000, 'JSON'),
    (f'{{"inputs": "a", "targets": "b", "x": {"9" * 5000}}}', '5000 digits.'),
    ('["a", "b"]', 'object'),
    ('"a"', 'object'),
    ('null', 'object'),
    ('3', 'object'),
    ('a\tb', 'JSON'),
    ('{"inputs": "a"}', "'targets'"),
    ('{"input": "a", "targets": "b"}', "'inputs'", "'input'"),
    ('{"inputs": "", "targets": "b"}', "'inputs'", 'nonempty'),
    ('{"inputs": " ", "targets": "b"}', "'inputs'", 'nonempty'),
    ('{"inputs": "a", "targets": null}', "'targets'", 'None'),
    ('{"inputs": ["a"], "targets": "b"}', "'inputs'", "['a']"),
    ('{"inputs": 3, "targets": "b"}', "'inputs'", '3'),
    ('{"inputs": "a", "targets": true}', "'targets'", 'True'),
    (f'{{"inputs": "{"x" * 10_000_000}", "targets": "b"}}', '10,000,0'),
    (b'{"inputs": "\xe9", "targets": "b"}', 'UTF-8'),
    (b'{"inputs": "a\x00", "targets": "b"}', 'JSON'),
    (b'{"inputs": "a", \xef\xbb\xbf"targets": "b"}', 'JSON'),
]  # fmt: skip

_TASK = """
from __gin__ import dynamic_registration
from moe_peft.data import local
DATA = %gin.REQUIRED
MIXTURE_OR_TASK_NAME = @local.register_task()
local.register_task:
  name = 'bad_files_{number}'
  train = %DATA
  validation = %DATA
"""


def train(refusals, data, number, more=''):
  """Arguments of `train` on a file of rows, under a name of its own."""
  refusals.write('task.gin', _TASK.format(number=number) + more)
  args = refusal.arguments(DATA=data)
  args = [x for x in args if not x.startswith('--gin.MIXTURE')]
  return ['train', *args, '--gin_file=task.gin']


@pytest.mark.parametrize('number', range(len(ROWS)))
def test_rows(number, refusals):
  line, *names = ROWS[number]
  line = line.encode() if isinstance(line, str) else line
  refusals.write('rows.jsonl', GOOD.encode() + line + b'\n' + GOOD.encode())
  said = refusals.expect(
      train(refusals, 'rows.jsonl', number), 'rows.jsonl, line 2', *names
  )
  assert len(said) < 1000


@pytest.mark.parametrize(
    ('inputs', 'targets', 'given'), [(40, 1, 32), (1, 40, 16)]
)
def test_long_rows_are_refused_where_that_is_asked(
    inputs, targets, given, refusals
):
  line = f'{{"inputs": "{"x" * inputs}", "targets": "{"x" * targets}"}}\n'
  refusals.write('rows.jsonl', GOOD + line)
  args = train(
      refusals, 'rows.jsonl', f'long_{given}', "  too_long = 'error'\n"
  )
  refusals.expect(args, 'rows.jsonl, line 2', '41', f'given: {given}')


FILES = [
    # Name and content of a data file; what the message must name.
    ('rows.jsonl', '', 'rows.jsonl', 'empty'),
    ('rows.jsonl', '\n\n', 'rows.jsonl', 'empty'),
    ('rows.jsonl.gz', GOOD, 'rows.jsonl.gz', 'gzip'),
    ('rows.jsonl.gz', '', 'rows.jsonl.gz'),
    ('rows.jsonl.gz', gzip.compress(GOOD.encode() * 99)[:-9], 'rows.jsonl.gz'),
    ('rows.jsonl', gzip.compress(GOOD.encode()), 'rows.jsonl, line 1'),
    ('rows.jsonl', GOOD.encode('utf-16'), 'rows.jsonl, line 1'),
    ('rows.csv', GOOD, 'rows.csv', 'empty'),
    ('rows.xlsx', GOOD, 'rows.xlsx', '.jsonl'),
    ('rows.tfrecord', GOOD, 'rows.tfrecord'),
    ('rows.tfrecord', '', 'rows.tfrecord'),
    ('other.jsonl', GOOD, 'rows.jsonl', 'existing'),
    ('rows.jsonl/x', GOOD, 'rows.jsonl'),
]


@pytest.mark.parametrize('number', range(len(FILES)))
def test_data_files(number, refusals):
  name, content, *names = FILES[number]
  refusals.write(name, content)
  data = name if name in names[0] else 'rows.jsonl'
  refusals.expect(train(refusals, data, f'file_{number}'), *names)


OTHER_ROWS = [
    # Rows of formats that an encoder-decoder's run cannot train on.
    ('{"prompt": "a", "chosen": "b", "rejected": "c"}', 'dpo.gin', 'targets'),
    ('{"input_ids": [4, 5], "labels": [-100, 5]}', 'rows.jsonl, line 1',
     'input_ids'),
]


@pytest.mark.parametrize('number', range(len(OTHER_ROWS)))
def test_rows_for_other_runs(number, refusals):
  row, *names = OTHER_ROWS[number]
  refusals.write('rows.jsonl', f'{row}\n')
  refusals.expect(train(refusals, 'rows.jsonl', f'other_{number}'), *names)


def test_a_pipe_is_not_waited_for(refusals):
  os.mkfifo(refusals.folder / 'rows.jsonl')
  refusals.expect(train(refusals, 'rows.jsonl', 'pipe'), 'rows.jsonl', 'file')


ARGUMENTS = [
    # Arguments of local.register_task; what the message must name.
    ("inputs_key = 'question'", "'question'", 'inputs_key'),
    ("metrics = ('nope',)", 'nope', 'exact_match'),
    ("metrics = 'nope'", 'nope'),
    ('metrics = 3', 'metrics', '3'),
    ("choices = ('b',)", 'local.register_task.choices'),
    ("choices = ('c', 'd')", 'rows.jsonl, line 1', "'b'"),
    ('choices = 3', 'choices', '3'),
    ("choices = ('b', 'c')\n  choices_key = 'x'", 'choices_key'),
    ("choices_key = 'x'", 'rows.jsonl, line 1', "'x'"),
    ("choices = ('b', 'c')\n  metrics = ('bleu',)", 'metrics'),
    ("name = 'a b'", "'a b'"),
    ("name = ''", "''"),
    ('name = 3', 'name = 3'),
    ("name = 'past_tense'", 'past_tense', 'another name'),
    ('data = %DATA', 'data', 'train'),
    ('train = None\n  validation = None', 'data'),
    ('validation = None', 'EVAL_SPLIT', 'validation'),
    ('train = None', 'train'),
    ("length_normalized = 'yes'", 'length_normalized'),
    ('split_fractions = (1, 2, 3)\n  data = %DATA\n  train = None\n'
     '  validation = None', 'split_fractions'),
    ("split_fractions = 'x'", 'split_fractions'),
]  # fmt: skip


@pytest.mark.parametrize('number', range(len(ARGUMENTS)))
def test_arguments_of_a_task(number, refusals):
  more, *names = ARGUMENTS[number]
  refusals.write('rows.jsonl', GOOD)
  args = train(refusals, 'rows.jsonl', f'argument_{number}', f'  {more}\n')
  refusals.expect(args, *names)


DAMAGE = ('{', '[]', '3', '"x"', '', '\x00', '{"version": 99}', '[' * 100_000)


@pytest.mark.parametrize('content', DAMAGE)
@pytest.mark.parametrize(
    'name', ['run.json', 'results.json', 'routing.json', 'similarity.json']
)
def test_reports_of_damaged_runs(name, content, refusals):
  run_folder.write_run(refusals.folder / 'run')
  refusals.write(f'run/{name}', content)
  refusals.expect(['report', 'run', '--out=page.html'], f'run/{name}')


RECORDS = [
    ('results.json', '{', 'results.json'),
    ('results.json', '{}', 'results.json'),
    ('results.json', '[{}]', 'results.json', '"name"'),
    ('results.json', '[3]', 'results.json'),
    ('results.json', '[{"name": "one", "seed": "x"}]', '"seed"'),
    ('tuning.json', '[]', 'tuning.json'),
    ('tuning.json', '{"one": 3}', 'tuning.json', '"one"'),
    ('tuning.json', '{"one": [{}]}', 'tuning.json', '"validation"'),
    ('configs/one.json', '[]', 'one.json'),
    ('configs/one.json', '{"RANK": "99"}', 'one.json', 'RANK'),
]


@pytest.mark.parametrize('number', range(len(RECORDS)))
def test_records_of_studies(number, refusals):
  name, content, *names = RECORDS[number]
  refusals.write('study/one.gin', "include 'configs/quickstart.gin'\n")
  refusals.write(f'records/{name}', content)
  refusals.expect(['study', 'study', '--out=out', '--results=records'], *names)


UNTRAINED = (
    'evaluate run', 'infer run lines.txt', 'ablate run', 'save_base run new',
    'prune run --out=new --keep=1', 'hf export run --out=new',
)


@pytest.mark.parametrize('command', UNTRAINED)
def test_a_run_without_a_checkpoint(command, refusals):
  tiny.load('run')
  refusals.write('run/config.gin', gin.config_str())
  refusals.write('lines.txt', 'past tense: walk\n')
  refusals.expect(command.split(), 'checkpoint')
