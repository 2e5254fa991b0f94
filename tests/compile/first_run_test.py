# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the gin file of a first run; tests/cli has the command."""

import gin
import pytest

from moe_peft import gin_files
from moe_peft.compile import first_run


@pytest.fixture(autouse=True)
def _clear():
  yield
  gin.clear_config()


@pytest.mark.parametrize(
    'name', ["it's.jsonl", 'a"b', "x'\n@os.system()\n", '50%', '@local', '\\n']
)
def test_values_are_quoted(tmp_path, name):
  leaf = first_run.Leaf(
      'gin/models/tiny_t5.gin', 'gin/methods/molora.gin',
      {'MODEL_DIR': (name, 'Where.'), 'TRAIN_STEPS': (30, 'Steps.')},
      {'name': 'my', 'data': name},
  )
  text = leaf.text('command')
  given = (
      "INITIAL_CHECKPOINT_PATH = 'x'\n"
      "TASK_FEATURE_LENGTHS = {'inputs': 8, 'targets': 8}\n"
  )
  file = tmp_path / 'leaf.gin'
  file.write_text(text + given, encoding='utf-8')
  gin_files.load_gin([str(file)])
  assert gin.query_parameter('%MODEL_DIR') == name
  assert gin.query_parameter('local.register_task.data') == name
  assert gin.query_parameter('%TRAIN_STEPS') == 30


@pytest.mark.parametrize(
    'data, name',
    [
        ("we'ird %x é.jsonl", 'we_ird__x_é'),
        ('rows/past_tense.csv', 'my_past_tense'),
        ('morphology.jsonl', 'my_morphology'),
        ('data/*.jsonl', '_'),
        ('.jsonl', 'rows'),
    ],
)
def test_no_task_has_the_name_of_a_shipped_one(data, name):
  assert first_run.task_name(data) == name
