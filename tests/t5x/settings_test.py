# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What gin files of T5X runs may not say, refused while T5X parses them."""

import functools

import jax
import pytest
import seqio

from tests import refusals
from tests.t5x import training

pytest.importorskip('t5x')
models = pytest.importorskip('moe_peft.t5x.models')
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
        ({'LEARNIGN_RATE': 1e-3}, 'LEARNIGN_RATE', ('LEARNING_RATE',)),
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
        ({'TASK_FEATURE_LENGTHS': None}, 'TASK_FEATURE_LENGTHS', ('targets',)),
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
        ('', 'from t5x import utils\nutils.SaveCheckpointConfig.keep = 0',
         'utils.SaveCheckpointConfig.keep', (0,)),
        # T5X's own file of a run, which ours includes, undoes it.
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


SCRIPT = 'import __main__ as train_script\ntrain_script.train.'
CONFIG = 'from t5x import checkpoints\nfrom t5x import utils\n'
NO_EVALUATION = SCRIPT.replace('.train.', '.train:') + """
  train_eval_dataset_cfg = None
  infer_eval_dataset_cfg = None
"""


@pytest.mark.parametrize(
    ('after', 'macros'),
    [
        # Macros that T5X does not read.
        (NO_EVALUATION, {'EVAL_PERIOD': 2, 'CHECKPOINT_PERIOD': 3}),
        (CONFIG + 'utils.SaveCheckpointConfig.period = 500',
         {'EVAL_PERIOD': 1500}),
        (CONFIG + 'utils.CheckpointConfig.save = None', {'EVAL_PERIOD': 1500}),
        (SCRIPT + 'eval_period = 500', {'EVAL_PERIOD': 1500}),
        (CONFIG + 'train/utils.DatasetConfig.batch_size = 96',
         {'NUM_MICROBATCHES': 3}),
        (CONFIG + 'utils.RestoreCheckpointConfig.path = []',
         {'INITIAL_CHECKPOINT_PATH': ['none']}),
        # Names of others, and what says the same as T5X's files.
        ('', dict.fromkeys(
            ('END_LEARNING_RATE', 'MIN_LEARNING_RATE', 'NUM_EXPERTS_2',
             'EVAL_SPLITS', 'RANKS', 'MODEL_DIRS', 'EVAL_BATCH_SIZE'), 1)),
        ('', {'PACKING': True, 'ACTIVATION_DTYPE': 'bfloat16'}),
        (CONFIG + 'OTHER = True\ntrain/utils.DatasetConfig.pack = %OTHER',
         {'PACKING': True}),
        ('', {'MIXTURE_OR_TASK_MODULE': ''}),
        # Other checkpointers do not save a place in the data.
        *(
            (f'{CONFIG}utils.SaveCheckpointConfig.checkpointer_cls = '
             f'@checkpoints.{name}', {})
            for name in ('Checkpointer', 'SaveBestCheckpointer')
        ),
    ],
)
def test_what_t5x_takes_is_not_refused(tmp_path, after, macros):
  assert parse(tmp_path, after=after, **macros)


@pytest.mark.parametrize(
    ('before', 'macros', 'names'),
    [
        ('', {'SCAN_LAYERS': True}, ('SCAN_LAYERS', 'scan_layers')),
        ('', {'EVAL_EXAMPLES': 8}, ('EVALUATOR_NUM_EXAMPLES',)),
        ('', {'ACTIVATION_DTYPE': 'bfloat16'}, ('dtype',)),
        ('', {'RANKS': 2}, ('RANKS', 'RANK.')),
        # T5X's own file of a run, which ours includes, undoes it.
        ("include 'gin/runs/t5x_adapter_checkpoints.gin'", {},
         ('save_dataset', 'gin/runs/t5x_finetune.gin')),
    ],
)
def test_what_may_be_meant_otherwise_is_a_warning(
    tmp_path, caplog, before, macros, names
):
  parse(tmp_path, before, **macros)
  assert all(name in caplog.text for name in names), caplog.text


@pytest.mark.parametrize(
    ('converter', 'lengths'),
    [
        (seqio.PassThroughFeatureConverter, {'text': 8}),
        (functools.partial(
            seqio.EncDecFeatureConverter,
            passthrough_features={
                'id': seqio.FeatureConverter.FeatureSpec('int32')
            },
        ), {'inputs': 8, 'targets': 8, 'id': 1}),
    ],
)
def test_lengths_are_those_that_the_converter_asks_for(
    tmp_path, monkeypatch, converter, lengths
):
  monkeypatch.setattr(
      models.AdaptedEncoderDecoderModel, 'FEATURE_CONVERTER_CLS', converter
  )
  assert parse(tmp_path, TASK_FEATURE_LENGTHS=lengths)


def test_folders_that_cannot_be_made(tmp_path):
  file, link = tmp_path / 'file', tmp_path / 'link'
  file.touch()
  link.symlink_to(tmp_path / 'absent')
  for folder, wrong in ((file, file), (file / 'run', file), (link, link)):
    with refusals.refused('MODEL_DIR', wrong):
      parse(tmp_path, MODEL_DIR=str(folder))


def test_only_the_first_host_writes_evaluations(tmp_path, monkeypatch):
  file = tmp_path / 'file'
  file.touch()
  with refusals.refused('EVAL_OUTPUT_DIR', file):
    parse(tmp_path, EVAL_OUTPUT_DIR=str(file))
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  assert parse(tmp_path, EVAL_OUTPUT_DIR=str(file))
