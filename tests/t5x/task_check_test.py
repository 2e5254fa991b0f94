# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Splits and lengths of tasks that evaluation and inference do not have."""

import pytest

from tests import refusals
from tests.t5x import training

pytest.importorskip('t5x')
pytest.importorskip('moe_peft.t5x.task_check')
settings = pytest.importorskip('moe_peft.t5x.settings')
pytestmark = [pytest.mark.t5x, pytest.mark.slow]

LEAF = """
from __gin__ import dynamic_registration
from t5x import utils
import seqio
include 'gin/models/t5x_tiny_t5.gin'
include 'gin/models/t5x_examples_t5.gin'
include 'gin/methods/molora.gin'
include 'gin/runs/t5x_{script}.gin'
MIXTURE_OR_TASK_NAME = 'past_tense'
TASK_FEATURE_LENGTHS = {{'inputs': 8, 'targets': 8}}
CHECKPOINT_PATH = 'absent/checkpoint_1'
{more}
"""


def parse(tmp_path, script, more='', **macros):
  file = tmp_path / 'leaf.gin'
  file.write_text(LEAF.format(script=script, more=more))
  macros.setdefault(f'{script.upper()}_OUTPUT_DIR', str(tmp_path / 'out'))
  with training.parsed(script, [file], **macros):
    return settings.of_script('dataset_cfg')  # As T5X builds it next.


SPLIT = 'utils.DatasetConfig.split'
TYPO = f"{SPLIT} = 'tset'\n"


@pytest.mark.parametrize('script', ['eval', 'infer'])
@pytest.mark.parametrize('task', ['past_tense', 'morphology'])
def test_a_split_that_is_not_there(tmp_path, script, task):
  with refusals.refused(SPLIT, 'tset', 'validation'):
    parse(tmp_path, script, TYPO, MIXTURE_OR_TASK_NAME=task)


OTHERS = 't5x_test_reverse'  # Registered by `training`, not by this package.
CACHED = TYPO + 'utils.DatasetConfig.use_cached = True\n'
# As T5X's infer_from_tfexample_file.gin: a task is registered when it is built.
FROM_FILE = """
from t5x import infer
utils.DatasetConfig:
  mixture_or_task_name = @infer.create_task_from_tfexample_file()
  split = 'infer'
infer.create_task_from_tfexample_file:
  paths = __file__
  file_type = 'tfrecord'
  inputs_key = 'inputs'
  targets_key = None
  features = {}
"""
# A task itself, and not its name.
OBJECT = """
utils.DatasetConfig.mixture_or_task_name = @seqio.get_mixture_or_task()
seqio.get_mixture_or_task.task_or_mixture_name = 'past_tense'
"""


@pytest.mark.parametrize(
    ('script', 'more', 'macros'),
    [
        # A source may have more than it names, and so may a cache.
        ('infer', TYPO, {'MIXTURE_OR_TASK_NAME': OTHERS}),
        ('eval', CACHED, {}),
        ('infer', CACHED, {}),
        ('infer', FROM_FILE.replace('__file__', repr([__file__])), {}),
        ('eval', OBJECT, {}),
        ('eval', '', {}),
        # T5X's own default: as long as the longest example.
        ('eval', 'TASK_FEATURE_LENGTHS = None\n', {}),
        # Of a file that training includes too.
        ('eval', '', {'PACKING': True}),
    ],
)
def test_what_t5x_takes_is_not_refused(tmp_path, script, more, macros):
  training.add_task()
  assert parse(tmp_path, script, more, **macros)


def test_inference_needs_lengths(tmp_path):
  with refusals.refused('TASK_FEATURE_LENGTHS', 'inputs', 'targets'):
    parse(tmp_path, 'infer', 'TASK_FEATURE_LENGTHS = None\n')


def test_answers_that_are_there_already_are_named(tmp_path, caplog):
  """T5X skips them, of whatever checkpoint they are."""
  parse(tmp_path, 'infer')
  assert 'INFER_OUTPUT_DIR' not in caplog.text
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out/past_tense-predict.jsonl.COMPLETED').touch()
  parse(tmp_path, 'infer')
  assert 'INFER_OUTPUT_DIR' in caplog.text
