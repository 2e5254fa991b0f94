# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Values of macros that are not allowed end `train` before anything is done."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from moe_peft import gin_rules
from moe_peft import gin_types
from moe_peft import gin_values
from moe_peft.training import experiment
from tests import messages_test
from tests import refusals as refusals_lib
from tests.cli import refusal

refusals = refusal.refusals

# No numbers at all, whatever the range; then what is out of ranges.
_NO_NUMBER = ("'x'", 'True', '(1,)', '1e999')
_NO_WHOLE = (*_NO_NUMBER, '1e3', '8.0', '2147483648')
_COUNT = (*_NO_WHOLE, 'None', '0', '-1')
_OR_NONE = (*_NO_WHOLE, '0', '-1')
_NOT_BELOW_0 = (*_NO_WHOLE, 'None', '-1')
_SHARE = (*_NO_NUMBER, 'None', '-0.1')
_RATE = (*_SHARE, '1.0', '2')
_BOOL = ('1', "'True'", 'None', "'yes'")
_TEXT = ('3', "''", "' '", '(1, 2)')
_REGEX = (*_TEXT, 'None', "'('", "'[a'", "'*'", "'(?P<x'")
_PATH = ('3', "''", 'True', "'a\\0b'", "'~no_such_user/x'")
_DTYPE = ('3', 'None', "'float64'", "'int8'", "'bf16'")
# By macro; the method whose files have it, if that is not MoLoRA.
VALUES = {
    'MODEL_DIR': (*_PATH, 'None'),
    'MIXTURE_OR_TASK_NAME': (*_TEXT, 'None'),
    'EVAL_MIXTURE_OR_TASK_NAME': _TEXT,
    'TASK_FEATURE_LENGTHS': (
        '{}', '32', 'None', "{'inputs': 0}", "{'inputs': 32.0}",
        "{'inputs': 'x', 'targets': 16}", '{1: 32}', "('inputs', 32)",
    ),
    'TRAIN_STEPS': _NOT_BELOW_0,
    'BATCH_SIZE': _COUNT,
    'NUM_MICROBATCHES': _COUNT,
    'PACKING': _BOOL,
    'SEED': _NOT_BELOW_0,
    'TRAINABLE_REGEX': _REGEX,
    'PARAM_BUDGET': (*_NO_NUMBER, '0', '-0.5'),
    'BUDGET_MACRO': _TEXT,
    'INITIAL_CHECKPOINT_PATH': _PATH,
    'BASE_DTYPE': tuple(x for x in _DTYPE if x != "'int8'"),
    'ACTIVATION_DTYPE': _DTYPE,
    'DROPOUT_RATE': _RATE,
    'SCAN_LAYERS': _BOOL,
    'REMAT_POLICY': ("'some'", 'None', 'True'),
    'ATTENTION': ("'some'", 'None', 'True'),
    'LEARNING_RATE': _SHARE,
    'ROUTER_LEARNING_RATE': _SHARE,
    'WARMUP_STEPS': (*_NO_WHOLE, '-1'),
    'WEIGHT_DECAY': _SHARE,
    'LOSS_FACTORS': ("{'auxiliary_loss': 'x'}", '3', '{1: 2.0}', "'x'"),
    'EVAL_PERIOD': _NOT_BELOW_0,
    'EVAL_BATCH_SIZE': _COUNT,
    'EVAL_EXAMPLES': _OR_NONE,
    'EVAL_SPLIT': (*_TEXT, 'None'),
    'BASE_RESULTS_DIR': _PATH,
    'CHECKPOINT_PERIOD': _COUNT,
    'LOG_PERIOD': _COUNT,
    'MAX_SKIPPED_STEPS': _COUNT,
    'ALLOW_CHANGED_DATA': _BOOL,
    'ALLOW_CHANGED_METHOD': _BOOL,
    'COMPILATION_CACHE_DIR': _PATH,
    'NUM_EXPERT_PARTITIONS': _COUNT,
    'NUM_MODEL_PARTITIONS': _COUNT,
    'SITES': _REGEX,
    'NUM_EXPERTS': _COUNT,
    'RANK': _COUNT,
    'ALPHA': (*_NO_NUMBER, 'None', '0', '-1.0'),
    'AUX_LOSS_FACTOR': _SHARE,
    'ROUTER_Z_LOSS_FACTOR': _SHARE,
    'mixlora ATTENTION_SITES': _REGEX,
    'mola EXPERTS_BY_DEPTH': ('()', '(0,)', '(2, 1.5)', "('x',)", '3'),
    'sira NUM_SELECTED_EXPERTS': _COUNT,
    'sira GATE_DROPOUT': _RATE,
    'sira CAPACITY_FACTOR': (*_NO_NUMBER, 'None', '0', '-1'),
    'sira CAPACITY_AT_EVALUATION': _BOOL,
    'smoe_dropout FIRST_K': _COUNT,
    'smoe_dropout GROWTH_STEPS': _OR_NONE,
    'adamole MAX_THRESHOLD': (*_NO_NUMBER, '0', '1.5'),
    'bottleneck NORMALIZE': _BOOL,
    'moelora CONTRASTIVE_LOSS_FACTOR': _SHARE,
    'adamix CONSISTENCY_LOSS_FACTOR': _SHARE,
    'bank_xlora HIDDEN_STATES': _REGEX,
    'bank_xlora LAYERWISE': _BOOL,
    'bank_xlora CLASSIFIER_DEPTH': _COUNT,
    'bank_xlora CLASSIFIER_WIDTH': _COUNT,
    'bank_xlora CLASSIFIER_DROPOUT': _RATE,
}
# Macros that are no values: parts of the configuration, by reference.
PARTS = {
    'ADAPTER', 'ADAPTER_RULES', 'ARCHITECTURE', 'MODEL', 'MODULE', 'VOCABULARY',
    'OPTIMIZER',
    # `python -m moe_peft study` reads these, and T5X this.
    'TUNE', 'SEEDS', 'TUNING_SEEDS', 'RUNGS', 'LOSS_NORMALIZING_FACTOR',
    # Of `claim.gin`, which is no run.
    'CLAIM', 'SOURCE', 'SETTING', 'CONTRASTS', 'EARLY_LOOK',
}  # fmt: skip


@pytest.mark.parametrize('macro', VALUES)
def test_values_out_of_range_name_the_macro(macro, refusals):
  method, _, name = f'molora {macro}'.rpartition(' ')
  method = method.split()[-1]
  for value in VALUES[macro]:
    args = refusal.arguments(method, **{name: value})
    said = refusals.expect(['train', *args], f'{name} = ', f'--gin.{name}.')
    assert said.count('\n') == 1


def test_there_are_many_of_them():
  assert sum(map(len, VALUES.values())) >= 300


def test_every_macro_has_a_rule_and_no_rule_is_left_over():
  known = messages_test.macros() - PARTS
  fields = {f.name.upper() for f in dataclasses.fields(experiment.Experiment)}
  of_t5x = {'EVAL_STEPS', 'EVALUATOR_NUM_EXAMPLES'}  # Of its own gin files.
  assert known <= set(gin_rules.RULES) <= known | fields | of_t5x


@pytest.mark.parametrize(
    ('binding', 'value'),
    [
        ('molora.MoLoRA.rank', '0'),
        ('molora.MoLoRA.alpha', "'x'"),
        ('t5.T5Config.emb_dim', '1.5'),
        ('t5.T5Config.mlp_activations', '3'),
        ('t5.T5Config.dropout_rate', '1.5'),
        ('experiment.Experiment.train_steps', '-1'),
        ('experiment.Experiment.checkpoints_to_keep', '0'),
        ('router/schedules.warmup_cosine.warmup_steps', "'x'"),
        ('RANK', '%ALPHA'),
    ],
)
def test_bindings_are_checked_by_name_and_by_annotation(
    binding, value, refusals
):
  args = refusal.arguments(**{binding: value})
  refusals.expect(['train', *args], f'{binding} = ', f'--gin.{binding}.')


def test_the_place_is_the_last_line_that_set_it(refusals):
  refusals.write('sizes.gin', 'NUM_EXPERTS = 4\nRANK = 4\n\nRANK = 0\n')
  leaf = "include 'configs/quickstart.gin'\ninclude 'sizes.gin'\n"
  refusals.write('leaf.gin', leaf)
  args = ['train', '--gin_file=leaf.gin', '--gin_search_paths=.']
  refusals.expect(args, 'RANK = 0', 'sizes.gin, line 4')
  refusals.write('leaf.gin', leaf + 'ALPHA = %RANK\nRANK = %SITES\n')
  refusals.expect(args, 'RANK = ', 'leaf.gin, line 4')
  refusals.write('leaf.gin', leaf + 'ALPHA = %RANK\nRANK = %ALPHA\n')
  refusals.expect(args, 'refers to itself', 'ALPHA = RANK')


def test_what_references_give_is_checked_when_it_is_known(refusals):
  refusals.write(
      'leaf.gin',
      'from __gin__ import dynamic_registration\nimport builtins\n'
      "include 'configs/quickstart.gin'\nBATCH_SIZE = @builtins.float()\n",
  )
  args = ['train', '--gin_file=leaf.gin']
  refusals.expect(args, 'BATCH_SIZE = 0.0 is no whole number')


def test_types_of_annotations():
  fits = gin_types.fits
  assert fits(1, float) and not fits(True, int) and not fits(1.0, int)
  assert fits(None, int | None) and not fits('x', int | None)
  assert fits(('a',), tuple[str, ...]) and not fits((1,), tuple[str, ...])
  assert fits({'a': 1}, dict[str, int]) and not fits({'a': 'x'}, dict[str, int])
  assert fits(Path(), Path) and not fits(3, Path) and fits(3, Any)


def test_a_rule_may_be_asked_alone():
  gin_values.check('RANDOM_SEED', None)
  gin_values.check('NO_SUCH_MACRO', object())
  with refusals_lib.refused('LABEL_SMOOTHING', '1.0'):
    gin_values.check('LABEL_SMOOTHING', 1.0)
  with refusals_lib.refused('SITE_METRICS', '3'):
    gin_values.check('SITE_METRICS', (3,))
