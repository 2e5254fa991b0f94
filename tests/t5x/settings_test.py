# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What gin files of T5X runs may not say, refused while T5X parses them."""

import pytest

from tests import refusals
from tests.t5x import training

pytest.importorskip('t5x')
settings = pytest.importorskip('moe_peft.t5x.settings')
pytestmark = [pytest.mark.t5x, pytest.mark.slow]

LEAF = """
from __gin__ import dynamic_registration
{before}
include 'gin/models/t5x_tiny_t5.gin'
include 'gin/models/t5x_examples_t5.gin'
include 'gin/methods/molora.gin'
include 'gin/runs/t5x_finetune.gin'
{after}
MIXTURE_OR_TASK_NAME = 'past_tense'
TASK_FEATURE_LENGTHS = {{'inputs': 8, 'targets': 8}}
TRAIN_STEPS = 4
MODEL_DIR = 'absent/run'
INITIAL_CHECKPOINT_PATH = 'absent/checkpoint_0'
"""
FINETUNE = 'gin/runs/t5x_finetune.gin'


def parse(tmp_path, before='', after='', **macros):
  file = tmp_path / 'leaf.gin'
  file.write_text(LEAF.format(before=before, after=after))
  with training.parsed('train', [file], **macros):
    return settings.macro('MODEL')


@pytest.mark.parametrize(
    ('macros', 'where', 'names'),
    [
        # Names that nothing uses.
        ({'NUM_EXPRTS': 4}, 'NUM_EXPRTS', ('NUM_EXPERTS',)),
        ({'num_experts': 4}, 'num_experts', ('NUM_EXPERTS',)),
        ({'PACKING': False}, 'PACKING', ('train/utils.DatasetConfig.pack',)),
        ({'SCAN_LAYERS': True}, 'SCAN_LAYERS', ('scalable_t5',)),
        ({'EVAL_EXAMPLES': 8}, 'EVAL_EXAMPLES', ('EVALUATOR_NUM_EXAMPLES',)),
        ({'NUM_EXPERT_PARTITIONS': 2}, 'NUM_EXPERT_PARTITIONS',
         ('t5x_expert_partitions.gin',)),
        # What T5X finds out late.
        ({'EVAL_PERIOD': 2, 'CHECKPOINT_PERIOD': 3}, 'EVAL_PERIOD', (2, 3)),
        ({'BATCH_SIZE': 8, 'NUM_MICROBATCHES': 3}, 'NUM_MICROBATCHES', (8, 3)),
        ({'INITIAL_CHECKPOINT_PATH': ['a']}, 'INITIAL_CHECKPOINT_PATH', ()),
        ({'MIXTURE_OR_TASK_MODULE': 'my_tasks'}, 'MIXTURE_OR_TASK_MODULE',
         ('my_tasks',)),
        ({'TASK_FEATURE_LENGTHS': {'inputs': 8}}, 'TASK_FEATURE_LENGTHS',
         ('targets',)),
        ({'TASK_FEATURE_LENGTHS': {'inputs': 8, 'targets': 8, 'more': 8}},
         'TASK_FEATURE_LENGTHS', ('more',)),
    ],
)
def test_one_message_while_gin_is_parsed(tmp_path, macros, where, names):
  with refusals.refused(where, *names):
    parse(tmp_path, **macros)


@pytest.mark.parametrize(
    ('before', 'after', 'where', 'names'),
    [
        ('', "include 'gin/methods/lora.gin'", 'ADAPTER', ('molora.MoLoRA',)),
        # T5X's own file of a run, which ours includes, undoes both.
        ("include 'gin/runs/t5x_adapter_checkpoints.gin'", '',
         'utils.SaveCheckpointConfig.save_dataset', (FINETUNE,)),
        ("include 'gin/runs/t5x_expert_partitions.gin'\n"
         'NUM_MODEL_PARTITIONS = 1', '', 'NUM_EXPERT_PARTITIONS', (FINETUNE,)),
        ('', 'from t5x.examples.t5 import network\n'
         "network.T5Config.emb_dim = 'wide'\nMODULE = @network.T5Config",
         'MODEL', ()),
    ],
)
def test_files_that_do_not_go_together(tmp_path, before, after, where, names):
  with refusals.refused(where, *names):
    parse(tmp_path, before, after)


def test_what_is_well_passes(tmp_path):
  """Twice the same file too, and a bucket as MODEL_DIR."""
  twice = "include 'gin/runs/t5x_adapter_checkpoints.gin'\n" * 2
  assert parse(tmp_path, after=twice, MODEL_DIR='gs://bucket/run')


def test_periods_of_runs_without_evaluations_are_free(tmp_path):
  none = 'import __main__ as train_script\n' + ''.join(
      f'train_script.train.{name}_eval_dataset_cfg = None\n'
      for name in ('train', 'infer')
  )
  assert parse(tmp_path, after=none, EVAL_PERIOD=2, CHECKPOINT_PERIOD=3)


def test_folders_that_cannot_be_made(tmp_path):
  file = tmp_path / 'file'
  file.touch()
  for folder in (file, file / 'run'):
    with refusals.refused('MODEL_DIR', file):
      parse(tmp_path, MODEL_DIR=str(folder))
