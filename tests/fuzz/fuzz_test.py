# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Some mutants of every format, always the same ones."""

import json
from pathlib import Path
import random

import pytest

from moe_peft import errors
from tests import refusals
from tests.fuzz import __main__ as fuzz
from tests.fuzz import mutations
from tests.fuzz import readers
from tests.fuzz import worker


@pytest.mark.slow
def test_no_mutant_of_any_format_is_a_fault():
  for package in ('gguf', 'tokenizers'):
    pytest.importorskip(package)
  jobs = list(fuzz.jobs(list(readers.READERS), 100))
  told = list(fuzz.run(jobs))
  assert not [x for x in told if 'fault' in x]
  assert len(told) == sum(job.stop - job.start for job in jobs)
  for job in jobs:  # Else the mutations are too mild, or too wild.
    refused = [x['refused'] for x in told if x['reader'] == job.reader]
    assert any(refused) or job.reader in ('prepared', 'page'), job.reader


def test_an_input_is_the_same_every_time():
  content = json.dumps({'a': [1, 'x', {'b': None}]}).encode()
  mutate = mutations.seldom_raw(mutations.as_json)
  of = lambda i: mutate(random.Random(f'x/{i}'), content)
  assert [of(i) for i in range(200)] == [of(i) for i in range(200)]
  assert len({of(i) for i in range(200)}) > 150


class _Reader:
  """A reader of one file, whose kinds of faults its text chooses."""

  mutate = {'file': lambda random, content: random.choice(_FAULTS)}

  @staticmethod
  def read(folder: Path, out: Path) -> None:
    text = (folder / 'file').read_bytes()
    if text == b'refused':
      raise errors.UserError('It is wrong.', folder)
    if text == b'foreign':
      raise KeyError('x')
    if text == b'message':
      raise errors.UserError('It is wrong.', folder, 'x' * 5000)
    if text == b'writes':
      (folder.parent / 'new').write_text('x')
    if text == b'among':
      (folder / 'new').write_text('x')
    if text == b'does':
      open('/dev/full', 'w').close()
    if text == b'out':
      (out / 'new').write_text('x')


_FAULTS = [
    b'refused', b'foreign', b'message', b'writes', b'among', b'does', b'out'
]


def test_every_kind_of_fault_is_seen(tmp_path):
  (tmp_path / 'root' / 'good').mkdir(parents=True)
  (tmp_path / 'root' / 'good' / 'file').touch()
  root = tmp_path / 'root'
  seen = {}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(errors, '_MAX_CHARACTERS', 5000)
    patch.setattr(worker, 'MAX_SECONDS', 60.0)  # Limits of this process stay.
    patch.setattr(worker.resource, 'setrlimit', lambda *args: None)
    watch = worker.Watch(root)
    for told in worker.inputs(_Reader, 'x', range(80), root, watch):
      text = (root / 'input' / 'file').read_bytes()
      seen.setdefault(text, told.get('fault', told.get('refused')))
      (root / 'new').unlink(missing_ok=True)
  assert seen == {
      b'refused': True, b'foreign': 'foreign', b'message': 'message',
      b'writes': 'writes', b'among': 'writes', b'does': 'does', b'out': False,
  }


@pytest.mark.slow
def test_a_reader_that_does_not_exist_is_named(tmp_path):
  with refusals.refused('--reader', 'gguf'):
    fuzz.main(['--reader', 'x', '--out', str(tmp_path)])
