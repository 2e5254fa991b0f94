# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run would be, from its gin files alone."""

import importlib.util
import json

import pytest

from moe_peft import errors
from moe_peft.cli import plan
from moe_peft.compile import planning
from tests import refusals

QUICKSTART = ['--gin_file=configs/quickstart.gin']


def make(arguments, capsys):
  plan.main([*arguments, '--json'])
  return json.loads(capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize('scan', [False, True])
def test_the_quickstart_adds_up(capsys, scan):
  made = make(
      [*QUICKSTART, '--gin.NAME=NUM_EXPERTS=8', '--gin.NAME=RANK=4',
       f'--gin.NAME=SCAN_LAYERS={scan}', '--devices=8',
       '--gin.NAME=NUM_EXPERT_PARTITIONS=4'],
      capsys,
  )
  counts = made['parameters']
  # As results/words/table.md has it, and the base.
  assert counts['trainable'] == 552_960
  assert counts['total'] == 552_960 + 1_575_296 + _scan_biases(scan)
  assert sum(counts['trainable_by_group'].values()) == 552_960
  sites = made['sites']
  assert 552_960 == sum(
      row['parameters'] * row['layers'] * len(row['sites']) for row in sites
  )
  # 3 + 3 layers; 4, 4 + 4 projections, wi_0 and wo.
  assert 3 * (6 + 10) == sum(r['layers'] * len(r['sites']) for r in sites)
  assert made['mesh'] == {'data': 2, 'expert': 4, 'model': 1}
  # Adam has two moments, and a count for each of two groups.
  moments = made['bytes']['optimizer'] - 2 * made['bytes']['trainable']
  assert 0 < moments < 100
  query = next(row for row in sites if 'query' in row['sites'])
  assert query['frozen_multiplications'] == 128 * 128
  assert query['parameters'] == 8 * 4 * (128 + 128) + 128 * 8


def _scan_biases(scan):
  """A scanned stack has a position bias in each layer: 2 * 2 more of them."""
  return 2 * 2 * 32 * 4 if scan else 0


def test_drops_of_two_tokens():
  # Two tokens, two experts, one slot: with probability 1/2 both choose the
  # same expert, and one of the two choices is dropped.
  assert planning.expected_drops(2, 2, 1, 1) == pytest.approx(0.25)
  assert planning.expected_drops(64, 8, 2, 64) == 0


@pytest.mark.slow
def test_capacity_shows_as_drops(capsys):
  method = '--gin_file=gin/methods/sira.gin'
  made = make([*QUICKSTART, method], capsys)
  assert all(0 < row['drops'] < 0.5 for row in made['sites'])
  plan.main([*QUICKSTART, method])
  assert 'SiRA, all_experts' in ' '.join(capsys.readouterr().out.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    'arguments',
    [
        [*QUICKSTART, '--gin_file=gin/methods/smoe_dropout.gin'],
        ['--gin_file=configs/claims/02_token/lora_id.gin'],
    ],
)
def test_what_routers_are_told_of_a_batch_is_told_them(arguments, capsys):
  """The step of one whose k grows, and ids of the examples."""
  made = make(arguments, capsys)
  assert made['sites'] and all(row['experts'] > 1 for row in made['sites'])


@pytest.mark.parametrize(
    ('arguments', 'where', 'names'),
    [
        (['--devices=3', '--gin.NAME=NUM_MODEL_PARTITIONS=2'], '--devices',
         ['3', 'NUM_MODEL_PARTITIONS']),
        (['--devices=48'], 'BATCH_SIZE', ['48 devices']),
    ],
)
def test_what_cannot_be_is_said(arguments, where, names):
  with refusals.refused(where, *names):
    plan.main([*QUICKSTART, *arguments])


def test_sites_that_match_nothing_are_said():
  with pytest.raises(errors.UserError) as info:
    plan.main([*QUICKSTART, '--gin.NAME=SITES=nothing'])
  assert 'nothing' in str(info.value)


@pytest.mark.t5x
@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec('t5x') is None, reason='t5x is not installed'
)
def test_a_run_of_t5x(capsys):
  made = make(
      ['--t5x', '--gin_file=configs/t0/xxl_mov_30.gin', '--devices=64',
       '--gin.NAME=NUM_MODEL_PARTITIONS=4'],
      capsys,
  )
  # What the released code has.
  assert made['parameters']['trainable'] == 47_462_400
  assert made['mesh'] == {'data': 16, 'expert': 1, 'model': 4}
  # Adafactor without factors: one second moment of each, and T5X's scalars.
  ratio = made['bytes']['optimizer'] / made['bytes']['trainable']
  assert 1 <= ratio < 1.001


@pytest.mark.t5x
@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec('t5x') is None, reason='t5x is not installed'
)
def test_a_budget_of_t5x(capsys):
  made = make(
      ['--t5x', '--gin_file=configs/t0/large_lora_r8.gin',
       '--gin.NAME=PARAM_BUDGET=0.01'],
      capsys,
  )
  counts = made['parameters']
  # The next rank is too large: all parameters of LoRA are of some rank.
  assert counts['trainable'] <= 0.01 * counts['frozen']
  rank_1 = make(
      ['--t5x', '--gin_file=configs/t0/large_lora_r8.gin',
       '--gin.NAME=RANK=1'],
      capsys,
  )['parameters']['trainable']
  assert counts['trainable'] + rank_1 > 0.01 * counts['frozen']
  assert counts['trainable'] % rank_1 == 0
