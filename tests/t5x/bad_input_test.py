# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What cannot work under `t5x.train` is said at once, with the remedy."""

import re

import pytest

from moe_peft import errors
from tests import refusals
from tests.t5x import networks
from tests.t5x import processes
from tests.t5x import training

pytest.importorskip('t5x')
pytestmark = [pytest.mark.t5x, pytest.mark.slow]


@pytest.mark.parametrize(
    ('macros', 'sizes', 'where', 'names'),
    [
        ({}, 'network.T5Config.emb_dim = 16', 'INITIAL_CHECKPOINT_PATH',
         ('another model', 'shapes')),
        ({}, 'network.T5Config.num_decoder_layers = 2',
         'INITIAL_CHECKPOINT_PATH', ('missing: decoder/l',)),
        ({'INITIAL_CHECKPOINT_PATH': '/nowhere/checkpoint_1'}, '',
         'INITIAL_CHECKPOINT_PATH', ('/nowhere/checkpoint_1',)),
        ({'MIXTURE_OR_TASK_NAME': 'past_tens'}, '', 'MIXTURE_OR_TASK_NAME',
         ('past_tens', 'past_tense')),
        ({'SITES': '.*/atention/.*'}, '', None, ('atention',)),
        # On eight devices.
        ({'NUM_MODEL_PARTITIONS': 3}, '',
         'NUM_EXPERT_PARTITIONS * NUM_MODEL_PARTITIONS', (3, 8)),
        ({'NUM_MODEL_PARTITIONS': 8}, 'network.T5Config.mlp_dim = 12',
         'NUM_MODEL_PARTITIONS', (8, 12, 'mlp/wi_0')),
        (
            {'NUM_EXPERT_PARTITIONS': 4},
            "include 'gin/runs/t5x_expert_partitions.gin'",
            'NUM_EXPERT_PARTITIONS',
            (4, 3, 'lora_a'),
        ),
        ({'BATCH_SIZE': 12}, '', 'BATCH_SIZE', (12, 16)),
        ({'BATCH_SIZE': 16, 'NUM_MICROBATCHES': 4}, '',
         'BATCH_SIZE / NUM_MICROBATCHES', (4, 8)),
        ({'PARAM_BUDGET': 10}, '', 'PARAM_BUDGET', (10, 'RANK = 1')),
        ({'TRAIN_STEPS_RELATIVE': 5}, '', 'TRAIN_STEPS_RELATIVE',
         ('TRAIN_STEPS instead',)),
        ({}, 'from t5x import partitioning\n'
         'partitioning.PjitPartitioner.num_partitions = 2',
         'partitioning.PjitPartitioner.num_partitions',
         ('NUM_MODEL_PARTITIONS',)),
        ({'LOSS_NORMALIZING_FACTOR': 100.0,
          'LOSS_FACTORS': {'router_z_loss': 0.1}}, '',
         'LOSS_NORMALIZING_FACTOR', (100.0, 'NUM_REAL_TARGET_TOKENS')),
        ({'LOSS_NORMALIZING_FACTOR': 'NUM_TOKENS'}, '',
         'LOSS_NORMALIZING_FACTOR', ('NUM_REAL_TARGET_TOKENS',)),
        ({}, 'from t5x import adafactor\nOPTIMIZER = @adafactor.Adafactor()',
         'OPTIMIZER', ('Adafactor', 't5x_finetune.gin')),
        ({}, 'from t5x import adafactor\n'
         "include 'gin/runs/t5x_adafactor.gin'\n"
         'adafactor.Adafactor.logical_factor_rules = '
         '@adafactor.standard_logical_factor_rules()',
         'adafactor.Adafactor.logical_factor_rules', ('adapter_factor_rules',)),
    ],
)
def test_one_message_before_any_step(tmp_path, macros, sizes, where, names):
  base = processes.write_base(tmp_path)
  config = networks.adapted(
      'molora',
      includes="include 'gin/runs/t5x_adapter_checkpoints.gin'",
      more=networks.FEW_SITES + sizes,
  )
  macros = {
      'MODEL_DIR': str(tmp_path / 'run'),
      'INITIAL_CHECKPOINT_PATH': base,
      'TRAIN_STEPS': 2,
      'NUM_EXPERTS': 3,
      'RANK': 2,
      **macros,
  }
  with (
      pytest.raises(errors.UserError) as info,
      training.configured('train', config, tmp_path / 'gin', **macros) as main,
  ):
    main()
  assert info.value.where == (where or info.value.where)
  assert all(str(name) in str(info.value) for name in names), info.value
  assert not list((tmp_path / 'run').glob('checkpoint_*'))


def test_a_run_file_of_t5x_does_not_train_the_base(tmp_path):
  config = networks.adapted(
      'molora',
      imports='from t5x import adafactor',
      more='OPTIMIZER = @adafactor.Adafactor()\n'
      "LOSS_NORMALIZING_FACTOR = 'NUM_REAL_TARGET_TOKENS'",
  ).replace('gin/runs/t5x_finetune.gin', 't5x/configs/runs/finetune.gin')
  with refusals.refused('OPTIMIZER', 'Adafactor', 't5x_finetune.gin'):
    training.train(
        config, tmp_path / 'run', INITIAL_CHECKPOINT_PATH='x', TRAIN_STEPS=1
    )


LEAF = """
from __gin__ import dynamic_registration

include 'gin/models/t5x_tiny_t5.gin'
include 'gin/models/t5x_examples_t5.gin'
include 'gin/methods/molora.gin'
include 'gin/runs/t5x_finetune.gin'
"""
REQUIRED = {
    'MODEL_DIR',
    'MIXTURE_OR_TASK_NAME',
    'TASK_FEATURE_LENGTHS',
    'TRAIN_STEPS',
    'INITIAL_CHECKPOINT_PATH',
}


def test_missing_macros_are_one_message(tmp_path):
  """From T5X's own parsing of gin, before it makes anything."""
  file = tmp_path / 'leaf.gin'
  file.write_text(LEAF)
  with pytest.raises(errors.UserError, match='Values are missing') as info:
    with training.parsed('train', [file]):
      pass
  flags = re.findall(r'--gin\.(\w+)=', str(info.value))
  assert set(flags) == REQUIRED and len(flags) == len(REQUIRED)


@pytest.mark.parametrize(
    ('line', 'macro'),
    [
        ("include 'gin/methods/molora.gin'", 'LOSS_FACTORS|ADAPTER_RULES'),
        ("include 'gin/models/t5x_examples_t5.gin'", 'MODEL'),
    ],
)
def test_the_macro_of_a_file_that_was_left_out_is_named(tmp_path, line, macro):
  file = tmp_path / 'leaf.gin'
  file.write_text(LEAF.replace(line, ''))
  values = {name: 'x' for name in REQUIRED}
  words = f'The macro ({macro}) is used but never set'
  with pytest.raises(errors.UserError, match=words):
    with training.parsed('train', [file], **values):
      pass
