# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A budget of parameters decides the rank or the number of experts."""

import re

import gin
import jax
import pytest

from moe_peft import gin_files
from moe_peft import gin_methods
from moe_peft.core import trainable
from moe_peft.training import budget
from moe_peft.training import run
from tests import refusals

METHODS = sorted(
    path.stem
    for path in gin_files.resource('gin/methods').glob('*.gin')
    if path.stem not in ('full', 'ia3', 'mov_wo', 'phatgoose', 'retrieval')
    and not path.stem.startswith('bank')  # A bank has its experts.
)
FAST = ('lora', 'molora', 'mov')
# Ids for the methods that are told one: as many as they have experts.
TOLD = {'EXAMPLE_IDS': ['past_tense', *map(str, range(9))]}
FLIX = {'FEATURES': [[str(number)] for number in range(10)]}
ONE_LAYER = {
    't5.T5Config.num_encoder_layers': 1,
    't5.T5Config.num_decoder_layers': 1,
}


def load(method, model='tiny_t5', **bindings):
  options = gin_methods.MethodFile(method).options
  values = {
      'MODEL_DIR': 'unused',
      'MIXTURE_OR_TASK_NAME': 'past_tense',
      'TASK_FEATURE_LENGTHS': {'inputs': 64, 'targets': 32},
      'TRAIN_STEPS': 100,
      'INITIAL_CHECKPOINT_PATH': None,
      **(TOLD if 'EXAMPLE_IDS' in options else {}),
      **(FLIX if method == 'flix' else {}),
      **bindings,
  }
  gin_files.load_gin(
      [
          f'gin/models/{model}.gin',
          f'gin/methods/{method}.gin',
          'gin/runs/finetune.gin',
      ],
      [f'{name}={value!r}' for name, value in values.items()],
  )


def chosen():
  """Name and value of the macro that the budget decided."""
  for macro in (gin.query_parameter('%BUDGET_MACRO'), *budget.SIZE_MACROS):
    if macro in gin_files.macros():
      return macro, gin.query_parameter(f'%{macro}')


def trained(experiment):
  """Trainable parameters of the configuration as it stands."""
  shapes = jax.eval_shape(
      lambda: experiment.model.init(
          jax.random.key(0), experiment.task_feature_lengths
      )
  )
  params, _ = trainable.split(
      trainable.flatten(shapes['params']), experiment.trainable_regex
  )
  return trainable.num_trained(params)


@pytest.mark.parametrize(
    'method',
    [
        pytest.param(name, marks=[] if name in FAST else pytest.mark.slow)
        for name in METHODS
    ],
)
def test_every_method_keeps_to_a_budget_and_uses_it(method):
  allowed = 400_000
  depths = {'EXPERTS_BY_DEPTH': (8,)} if method in ('mola', 'mosld') else {}
  if method == 'ldmole':  # Its networks of lambda alone are larger.
    depths = {'LAMBDA_UNITS': 8}
  load(method, PARAM_BUDGET=allowed, **ONE_LAYER, **depths)
  assert trained(run.build()) <= allowed
  macro, value = chosen()
  load(method, **{macro: value + 1}, **ONE_LAYER, **depths)
  assert trained(run.build()) > allowed


@pytest.mark.slow
@pytest.mark.parametrize(
    'method,macro,value,number',
    # arXiv 2309.05444: T5-Large with MoLoRA 10 x 4 and MoV-30, to the last.
    [
        ('molora', 'RANK', 4, 43_130_880),
        ('mov', 'NUM_EXPERTS', 30, 12_810_240),
    ],
)
def test_a_published_count_gives_the_published_size(
    method, macro, value, number
):
  scan = {'t5.T5Config.scan_layers': True}
  load(method, model='t5_1_1_large', PARAM_BUDGET=number, **scan)
  assert trained(run.build()) == number
  assert chosen() == (macro, value)


def test_a_share_is_of_the_base(capsys):
  load('lora', PARAM_BUDGET=0.05)
  # Rank 1 trains 15,360 parameters (61,440 at rank 4).
  assert trained(run.build()) == 76_800
  said = ' '.join(capsys.readouterr().err.split())
  # 5 % of 1,575,296, and the flag that does without the budget.
  for words in ('78,764', '--gin.RANK=5', '76,800'):
    assert words in said
  # The configuration is locked, and holds the choice as it holds the rest.
  assert gin.config_is_locked()
  assert re.search('^RANK = 5$', gin.config_str(), re.M)


@pytest.mark.slow
def test_a_scale_stays_whatever_rank_the_budget_chooses(capsys):
  load('lora', PARAM_BUDGET=0.05, SCALE=0.5)
  run.build()
  assert gin.query_parameter('%RANK') == 5
  assert gin.query_parameter('%ALPHA') == 2.5
  load('lora', SCALE=0.5)  # Without a budget too: RANK is 16.
  run.build()
  assert gin.query_parameter('%ALPHA') == 8.0
  load('lora', PARAM_BUDGET=0.05)
  run.build()
  assert gin.query_parameter('%ALPHA') == 16.0
  load('mov', SCALE=0.5)
  with refusals.refused('SCALE', 'ALPHA'):
    run.build()


@pytest.mark.slow
def test_a_budget_that_is_not_filled_is_said_to_be_unequal(capsys):
  # SMoE-Dropout's steps of one rank are large: 78 % of a fifth of the base.
  load('smoe_dropout', PARAM_BUDGET=0.2, NUM_EXPERTS=8, FIRST_K=2,
       NUM_SELECTED_EXPERTS=8)
  run.build()
  assert 'NUM_EXPERTS or SITES' in ' '.join(capsys.readouterr().err.split())
  load('lora', PARAM_BUDGET=0.2)
  run.build()
  assert 'NUM_EXPERTS or SITES' not in capsys.readouterr().err


def test_another_macro_may_be_named():
  load(
      'molora', PARAM_BUDGET=400_000, BUDGET_MACRO='NUM_EXPERTS', **ONE_LAYER
  )
  run.build()
  macro, value = chosen()
  assert macro == 'NUM_EXPERTS' and value > 2


def test_counts_need_not_be_on_a_line():
  # The largest square root, found from the slope at 1: 3 is too steep a guess.
  assert budget.solve(lambda size: size * size, 50, 1) == 7
  assert budget.solve(lambda size: 10 + 5 * size, 29, 1) == 3


@pytest.mark.parametrize(
    ('method', 'bindings', 'where', 'names'),
    [
        ('molora', {'PARAM_BUDGET': 1000}, 'PARAM_BUDGET', ('RANK = 1', 1000)),
        ('ia3', {'PARAM_BUDGET': 0.01}, 'PARAM_BUDGET', budget.SIZE_MACROS),
        (
            'lora',
            {'PARAM_BUDGET': 0.01, 'BUDGET_MACRO': 'RANKS'},
            'BUDGET_MACRO',
            ('RANKS',),
        ),
        (
            'molora',
            {'PARAM_BUDGET': 0.9, 'BUDGET_MACRO': 'SEED'},
            'PARAM_BUDGET',
            ('SEED', 'BUDGET_MACRO'),
        ),
    ],
)
def test_impossible_budgets_are_refused(method, bindings, where, names):
  load(method, **ONE_LAYER, **bindings)
  names = [f'{x:,}' if isinstance(x, int) else x for x in names]
  with refusals.refused(where, *names):
    run.build()


STUDY = sorted(gin_files.resource('configs/study/wide').glob('*.gin'))
ABLATIONS = sorted(
    gin_files.resource('configs/study/ablations').glob('*.gin')
)


# By rank, by rank and experts, by vectors; and two that have no size.
SIZED = ('lora', 'molora', 'mov', 'full', 'ia3')


@pytest.mark.slow
@pytest.mark.parametrize('file', [
    pytest.param(
        file, id='-'.join(file.parts[-2:]),
        marks=() if file.stem in SIZED else pytest.mark.long,
    )
    for file in STUDY + ABLATIONS
])
def test_rows_of_the_wide_study_keep_to_its_budget(file):
  gin_files.load_gin([str(file)], ['MODEL_DIR=unused'])
  experiment = run.build()
  if file.stem in ('full', 'ia3'):  # They have no size to choose.
    assert experiment.param_budget is None
  else:
    base = 1_575_296
    assert 0.15 * base < trained(experiment) <= 0.2 * base


# Methods that came after the wide study was run.
LATER = (
    'comol', 'dora', 'dynmole', 'flix', 'flylora', 'goat', 'ldmole', 'lora_fa',
    'lora_id', 'loraplus', 'mica', 'milora', 'mlae', 'modula', 'moelora_id',
    'molora_id', 'molora_lossfree', 'molora_orthogonal', 'mor_lora', 'mtl_lora',
    'olora', 'pissa', 'riemannian', 'rslora', 'ttlora',
)


def test_the_wide_study_has_every_method_of_its_time():
  text = ''.join(file.read_text() for file in STUDY)
  for method in {'full', 'ia3', *METHODS} - {*LATER}:
    assert f"include 'gin/methods/{method}.gin'" in text
