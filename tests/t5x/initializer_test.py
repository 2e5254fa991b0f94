# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What surely does not fit is said before T5X makes anything."""

import pytest

from moe_peft.training import memory
from tests import refusals
from tests.t5x import networks
from tests.t5x import training

pytest.importorskip('t5x')
planning = pytest.importorskip('moe_peft.t5x.planning')
pytestmark = [pytest.mark.t5x, pytest.mark.slow]

# Adapters and moments of a few kilobytes beside a base of hundreds.
WIDE = "SITES = '.*/self_attention/query'\nnetwork.T5Config.mlp_dim = 4096\n"


@pytest.fixture(name='configured')
def _configured(tmp_path):
  def configured(**macros):
    return training.configured(
        'train', networks.adapted('molora', more=WIDE), tmp_path / 'gin',
        MODEL_DIR=str(tmp_path / 'run'), INITIAL_CHECKPOINT_PATH=None,
        TRAIN_STEPS=1, NUM_EXPERTS=2, RANK=1, **macros,
    )

  return configured


def test_a_part_that_is_too_large_is_refused(
    configured, tmp_path, monkeypatch
):
  with configured() as train:
    step = planning.step()
    whole = memory.num_bytes((step.frozen, step.trained, step.optimizer))
    monkeypatch.setattr(memory, 'of_host', lambda: whole - 100)
    with refusals.refused('NUM_MODEL_PARTITIONS', 'GiB', 'BASE_DTYPE'):
      train()
  assert not list((tmp_path / 'run').glob('checkpoint_*'))


def test_parts_and_a_base_in_fewer_bits_fit(configured, monkeypatch):
  with configured():
    step = planning.step()
    whole = memory.num_bytes((step.frozen, step.trained, step.optimizer))
  monkeypatch.setattr(memory, 'of_host', lambda: whole * 2 // 3)
  for macros in ({'NUM_MODEL_PARTITIONS': 8}, {'BASE_DTYPE': 'bfloat16'}):
    with configured(**macros):
      planning.step()


def test_an_evaluation_is_refused_by_what_it_cannot_do_without(
    tmp_path, monkeypatch
):
  """It has no optimizer, and its base counts as in bfloat16 already.

  What training shares with it, such as microbatches, is not its own.
  """
  monkeypatch.setattr(memory, 'of_host', lambda: 1)
  config = networks.adapted(
      'molora', imports='from t5x import trainer', run='t5x_eval',
      more=f'{WIDE}trainer.Trainer.num_microbatches = %NUM_MICROBATCHES\n'
      'NUM_MICROBATCHES = 3\n',
  )
  with (
      training.configured(
          'eval', config, tmp_path / 'gin', CHECKPOINT_PATH='absent',
          EVAL_OUTPUT_DIR=str(tmp_path / 'out'), NUM_EXPERTS=2, RANK=1,
      ) as evaluate,
      refusals.refused('NUM_MODEL_PARTITIONS', 'smaller base') as info,
  ):
    evaluate()
  assert 'BASE_DTYPE' not in info.value.remedy
