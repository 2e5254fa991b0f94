# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Stock `t5x.train` with our gin files: methods on networks."""

import jax
import numpy as np
import pytest

from moe_peft import errors
from moe_peft import trainable
from tests.t5x import networks
from tests.t5x import training

pytest.importorskip('t5x')
pytestmark = [pytest.mark.t5x, pytest.mark.slow]

SIRA = 'NUM_SELECTED_EXPERTS = 2\n'
# For networks that lose what is sown in their scan.
NO_LOSSES = 'AUX_LOSS_FACTOR = 0.0\nCONTRASTIVE_LOSS_FACTOR = 0.0\n'
SITE_METRICS = "SITE_METRICS = ('router_entropy',)\n"


@pytest.fixture(scope='module')
def bases(tmp_path_factory):
  """Makes T5X checkpoints of unchanged networks: path and parameters."""
  made = {}

  def get(name):
    name = networks.NETWORKS[name].base or name
    package = networks.NETWORKS[name].package
    pytest.importorskip(package)
    if name not in made:
      folder = tmp_path_factory.mktemp(name)
      state = training.train(networks.stock(name), folder, package=package)
      made[name] = str(folder / 'checkpoint_1'), training.flat_params(state)
    return made[name]

  return get


def check_trained(state, base_params, steps):
  """The base is as it was, all adapters and only they have a state."""
  params = training.flat_params(state)
  frozen = {k: v for k, v in params.items() if not trainable.is_adapter(k)}
  assert frozen.keys() == base_params.keys()
  for path, value in frozen.items():
    np.testing.assert_array_equal(value, base_params[path], err_msg=path)
  assert int(state.step) == steps
  adapters = params.keys() - frozen.keys()
  started = {'lora_b': 0.0, 'scaling': 1.0}  # What every method begins with.
  experts = {k for k in adapters if k.split('/')[-1] in started}
  assert experts
  for path in experts:
    assert (params[path] != started[path.split('/')[-1]]).any(), path
  assert not any('expert' in path for path in params)
  # Adam has two moments of every trained parameter and nothing else.
  sizes = [x.size for x in jax.tree.leaves(state.param_states) if x.ndim]
  assert sum(sizes) == 2 * sum(params[k].size for k in adapters)


@pytest.mark.parametrize(
    'network,method,more',
    [
        ('examples.t5', 'molora', ''),
        ('examples.t5', 'mov_wo', ''),
        ('examples.t5', 'sira', SIRA),
        ('examples.t5', 'moelora', SITE_METRICS),
        ('examples.scalable_t5', 'molora', ''),
        ('examples.scalable_t5', 'mov_wo', ''),
        ('examples.scalable_t5', 'sira', SIRA + NO_LOSSES),
        ('examples.scalable_t5', 'moelora', NO_LOSSES),
        ('examples.decoder_only', 'molora', ''),
        ('examples.decoder_only', 'sira', SIRA + SITE_METRICS),
        ('own', 'moelora', SITE_METRICS),  # A scan with losses.
        ('flaxformer', 'molora', ''),
        ('flaxformer', 'sira', SIRA + SITE_METRICS),
    ],
)
def test_only_adapters_train(bases, tmp_path, network, method, more):
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
  check_trained(state, base_params, 2)


def test_losses_that_the_scan_of_t5x_drops_are_refused(tmp_path):
  with pytest.raises(errors.UserError, match='scan'):
    training.train(
        networks.adapted('molora', 'examples.scalable_t5'),
        tmp_path,
        INITIAL_CHECKPOINT_PATH=[],
        TRAIN_STEPS=2,
        NUM_EXPERTS=3,
        AUX_LOSS_FACTOR=0.01,
    )


def test_adapter_checkpoints_resume(bases, tmp_path):
  base, base_params = bases('examples.t5')
  # Schedules see the number of steps: keep it, and stop early.
  config = networks.adapted(
      'molora',
      imports='from moe_peft.training import schedules',
      includes="include 'gin/runs/t5x_adapter_checkpoints.gin'",
      more="""
CHECKPOINT_PERIOD = 2
schedules.warmup_cosine.train_steps = 8
""",
  )
  macros = dict(INITIAL_CHECKPOINT_PATH=base, NUM_EXPERTS=3, RANK=2)
  whole = training.train(config, tmp_path / 'a', TRAIN_STEPS=4, **macros)
  training.train(config, tmp_path / 'b', TRAIN_STEPS=2, **macros)
  resumed = training.train(config, tmp_path / 'b', TRAIN_STEPS=4, **macros)
  check_trained(resumed, base_params, 4)
  jax.tree.map(
      np.testing.assert_array_equal, whole.state_dict(), resumed.state_dict()
  )
  folder = tmp_path / 'b' / 'checkpoint_4'
  assert {p.name for p in folder.iterdir()} >= {'state', 'base', 'dataset'}

  # Another base of the same shapes.
  other = tmp_path / 'other'
  training.train(networks.stock('examples.t5'), other, RANDOM_SEED=8)
  macros['INITIAL_CHECKPOINT_PATH'] = str(other / 'checkpoint_1')
  with pytest.raises(errors.UserError, match='were trained on the base'):
    training.train(config, tmp_path / 'b', TRAIN_STEPS=6, **macros)
