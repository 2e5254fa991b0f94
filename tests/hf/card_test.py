# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Cards of exports: names of somebody else are quoted; fixtures are read."""

import json
import types

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from moe_peft.hf import card
from moe_peft.hf import fixture
from moe_peft.hf import networks
from tests.hf import adapted
from tests.refusals import refused

NAMES = ['google/t5-small', 'x"\nlicense: not-ours\nfoo: "', 'a\n---\n# c']


@pytest.mark.parametrize('name', NAMES)
def test_a_name_of_somebody_else_stays_a_name(name, tmp_path):
  network = networks.of(adapted.LLAMA)
  trained = types.SimpleNamespace(
      base_model=name, facts={'base': 'a T5'}, network=network
  )
  card.write(tmp_path, trained, (), 'LORA', ['Nothing.'])
  text = (tmp_path / 'README.md').read_text()
  _, front, body = text.split('---\n', maxsplit=2)
  lines = dict(line.split(': ', maxsplit=1) for line in front.splitlines())
  # Values are JSON, which is YAML: the name has made no key of its own.
  assert set(lines) == {'base_model', 'library_name', 'pipeline_tag', 'tags'}
  assert json.loads(lines['base_model']) == ' '.join(name.split())
  code = body.split('```python\n')[1].split('```')[0]
  (call,) = (line for line in code.splitlines() if line.startswith('base = '))
  argument = call.split('from_pretrained(')[1].removesuffix(')')
  assert json.loads(argument) == ' '.join(name.split())


def test_a_fixture_is_read_as_it_was_written(tmp_path):
  arrays = {'logits': np.ones((2, 3), np.float32)}
  safetensors_numpy.save_file(arrays, tmp_path / fixture.FILE)
  np.testing.assert_array_equal(fixture.read(tmp_path)['logits'], 1)


def test_a_folder_without_a_fixture_is_named(tmp_path):
  with refused(tmp_path, fixture.FILE):
    fixture.read(tmp_path)


@pytest.mark.slow
def test_a_damaged_fixture_is_named(tmp_path):
  (tmp_path / fixture.FILE).write_bytes(b'no safetensors')
  with refused(tmp_path / fixture.FILE):
    fixture.read(tmp_path)
