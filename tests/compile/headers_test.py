# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is noted of compiled steps in gin files, without a compiler."""

import json

import pytest

from moe_peft import gin_files
from moe_peft.cli import aot
from moe_peft.compile import headers
from tests import refusals
from tests.compile import tables_test

LEAF = """\
# MoLoRA.
#
# Hardware and hours: not run.
# Published:
#   62.22.
from __gin__ import dynamic_registration

RANK = 4  # Hardware and hours: not run.
"""
REPORTS = [
    file
    for file in sorted(gin_files.resource('results/aot').glob('*/*.json'))
    if file.parent.name != 'slices'  # Made of no leaf.
]


def test_notes_take_the_place_of_what_was_there(tmp_path):
  file = tmp_path / 'leaf.gin'
  file.write_text(LEAF)
  headers.write(file, [tables_test.REPORT])
  first = [
      '# Compiled for v5e-8, data 4 x model 2 with execution einsum, not run: '
      '10.50 of',
      '#   15.75 GiB a device, at least 0.500 s a step (memory).',
  ]
  old = '# Hardware and hours: not run.\n'
  assert file.read_text() == LEAF.replace(old, '\n'.join(first) + '\n', 1)
  # Another slice has a note of its own, the same one not.
  other = tables_test.HEAD | {
      'topology': 'v5p-8', 'bindings': ['RANK=8'], 'execution': 'configured',
      'error': 'TOO LARGE',
  }
  headers.write(file, [tables_test.REPORT, other, other])
  second = '# Compiled for v5p-8, data 4 x model 2 with RANK=8, not run: too '
  second = [second + 'large.']
  lines = file.read_text().splitlines()
  assert lines[2:7] == [*first, *second, '# Published:', '#   62.22.']
  assert lines[7:] == LEAF.splitlines()[5:]


def test_reports_of_earlier_are_noted(tmp_path):
  leaf, shown = tmp_path / 'leaf.gin', tmp_path / 'aot.json'
  leaf.write_text(LEAF)
  report = {'experiment': 'leaf'} | tables_test.REPORT
  shown.write_text(json.dumps([report]))
  aot.main([f'--gin_file={leaf}', f'--show={shown}', '--header'])
  assert '# Compiled for v5e-8' in leaf.read_text()
  other = tmp_path / 'other.gin'
  other.write_text(LEAF)
  with refusals.refused('--show', 'other'):
    aot.main([f'--gin_file={other}', f'--show={shown}', '--header'])
  # A CPU has neither a memory nor a time to note.
  host = report | {'topology': 'host-8', 'roofline': None}
  host['memory'] = report['memory'] | {'limit': None}
  shown.write_text(json.dumps([host]))
  with refusals.refused('--show', 'leaf', 'slice'):
    aot.main([f'--gin_file={leaf}', f'--show={shown}', '--header'])
  with refusals.refused('--header', '--gin_file'):
    aot.main([f'--show={shown}', '--header'])
  with refusals.refused('--header', '--topology'):
    aot.main([f'--gin_file={leaf}', '--topology=host-8', '--header'])


@pytest.mark.parametrize(
    'file', REPORTS, ids=lambda file: f'{file.parent.name}/{file.stem}'
)
def test_headers_say_what_the_reports_do(file):
  leaf = gin_files.resource(f'configs/{file.parent.name}/{file.stem}.gin')
  text = leaf.read_text(encoding='utf-8')
  for report in json.loads(file.read_text(encoding='utf-8')):
    assert report['experiment'] == file.stem
    assert '\n'.join(headers.note(report)) in text
