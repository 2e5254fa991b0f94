# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Stock `t5x.train` with our gin files: methods on networks.

public_leaves_test.py has MoLoRA on each of them.
"""

import functools

import jax
import numpy as np
import pytest

from moe_peft import errors
from moe_peft.training import bases as bases_lib
from tests import refusals
from tests.t5x import networks
from tests.t5x import training

pytest.importorskip('t5x')
pytestmark = [pytest.mark.t5x, pytest.mark.slow]

SIRA = 'NUM_SELECTED_EXPERTS = 2\n'
# For networks that lose what is sown in their scan.
NO_LOSSES = 'AUX_LOSS_FACTOR = 0.0\nCONTRASTIVE_LOSS_FACTOR = 0.0\n'
SITE_METRICS = "SITE_METRICS = ('router_entropy',)\n"
# Rows of a network and a method that other rows have.
long = functools.partial(pytest.param, marks=pytest.mark.long)


@pytest.mark.parametrize(
    'network,method,more',
    [
        ('examples.t5', 'mov_wo', ''),
        ('examples.t5', 'sira', SIRA),
        long('examples.t5', 'moelora', SITE_METRICS),
        long('examples.scalable_t5', 'mov_wo', ''),
        long('examples.scalable_t5', 'sira', SIRA + NO_LOSSES),
        ('examples.scalable_t5', 'moelora', NO_LOSSES),
        ('examples.decoder_only', 'sira', SIRA + SITE_METRICS),
        ('own', 'moelora', SITE_METRICS),  # A scan with losses.
        ('flaxformer', 'sira', SIRA + SITE_METRICS),
    ],
)
def test_only_adapters_train(bases, tmp_path, network, method, more):
  networks.require(network)
  base, base_params = bases(network)
  rank = {} if method == 'mov_wo' else {'RANK': 2}
  state = training.train(
      networks.adapted(method, network, more=more),
      tmp_path,
      package=networks.NETWORKS[network].package,
      INITIAL_CHECKPOINT_PATH=base,
      TRAIN_STEPS=2,
      NUM_EXPERTS=3,
      **rank,
  )
  training.check_trained(state, base_params, 2)


def test_losses_that_the_scan_of_t5x_drops_are_refused(tmp_path):
  with pytest.raises(errors.UserError, match='scan'):
    training.train(
        networks.adapted(
            'molora', 'examples.scalable_t5', more=networks.FEW_SITES
        ),
        tmp_path,
        INITIAL_CHECKPOINT_PATH=[],
        TRAIN_STEPS=2,
        NUM_EXPERTS=3,
        AUX_LOSS_FACTOR=0.01,
    )


@pytest.mark.parametrize(
    ('network', 'method', 'more', 'drawn'),
    [
        ('examples.t5', 'lora_fa', '', 'lora_a'),
        # In a scan.
        ('own', 'mola', 'EXPERTS_BY_DEPTH = (2, 3)\n', 'layer_index'),
    ],
)
def test_what_is_drawn_and_does_not_train_is_saved_too(
    bases, tmp_path, network, method, more, drawn
):
  base, base_params = bases(network)
  config = networks.adapted(
      method, network,
      includes="include 'gin/runs/t5x_adapter_checkpoints.gin'",
      more=f'{networks.FEW_SITES}{more}CHECKPOINT_PERIOD = 1\n',
  )
  macros = dict(INITIAL_CHECKPOINT_PATH=base, RANK=2, WARMUP_STEPS=0)
  first = training.train(config, tmp_path, TRAIN_STEPS=1, **macros)
  # Under another seed others would be drawn.
  last = training.train(
      config, tmp_path, TRAIN_STEPS=2, RANDOM_SEED=1, **macros
  )
  before, after = map(training.flat_params, (first, last))
  saved = bases_lib.read_arrays(tmp_path / 'checkpoint_1')
  frozen = [x for x in after if x.endswith(f'/adapter/{drawn}')]
  assert frozen
  for path in frozen:
    np.testing.assert_array_equal(saved[path], before[path])
  for path in [*frozen, *base_params]:
    np.testing.assert_array_equal(after[path], before[path], err_msg=path)


def test_adapter_checkpoints_resume(bases, tmp_path):
  base, base_params = bases('examples.t5')
  # Schedules see the number of steps: keep it, and stop early.
  config = networks.adapted(
      'molora',
      imports='from moe_peft.training import schedules',
      includes="include 'gin/runs/t5x_adapter_checkpoints.gin'",
      more=f"""
{networks.FEW_SITES}
CHECKPOINT_PERIOD = 2
schedules.warmup_cosine.train_steps = 8
""",
  )
  macros = dict(INITIAL_CHECKPOINT_PATH=base, NUM_EXPERTS=3, RANK=2)
  whole = training.train(config, tmp_path / 'a', TRAIN_STEPS=4, **macros)
  training.train(config, tmp_path / 'b', TRAIN_STEPS=2, **macros)
  resumed = training.train(config, tmp_path / 'b', TRAIN_STEPS=4, **macros)
  training.check_trained(resumed, base_params, 4)
  jax.tree.map(
      np.testing.assert_array_equal, whole.state_dict(), resumed.state_dict()
  )
  folder = tmp_path / 'b' / 'checkpoint_4'
  assert {p.name for p in folder.iterdir()} >= {'state', 'base', 'dataset'}

  # No shape says so.
  changed = {**macros, 'ALPHA': 3.0, 'TRAIN_STEPS': 6}
  with refusals.refused('ALPHA', 3.0, 'ALLOW_CHANGED_METHOD'):
    training.train(config, tmp_path / 'b', **changed)
  training.train(config, tmp_path / 'b', ALLOW_CHANGED_METHOD=True, **changed)

  # Another base of the same shapes.
  other = tmp_path / 'other'
  training.train(networks.stock('examples.t5'), other, RANDOM_SEED=8)
  macros['INITIAL_CHECKPOINT_PATH'] = str(other / 'checkpoint_1')
  with refusals.refused('INITIAL_CHECKPOINT_PATH or BASE_PATH', base, other):
    training.train(
        config, tmp_path / 'b', ALLOW_CHANGED_METHOD=True, TRAIN_STEPS=8,
        **macros,
    )
