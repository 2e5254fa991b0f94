# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Eight devices train as one does, in every layout of T5X's partitioners."""

import re

import gin
import numpy as np
import pytest

from tests.t5x import networks
from tests.t5x import processes
from tests.t5x import training

pytest.importorskip('t5x')
pytestmark = [pytest.mark.t5x, pytest.mark.slow]

EXPERTS = "include 'gin/runs/t5x_expert_partitions.gin'"
STEPS = 5
# Experts whose inputs lie split, and whose outputs do.
BALANCED = networks.FEW_SITES + 'AUX_LOSS_FACTOR = 0.01\n'


@pytest.fixture(scope='module')
def one_device(tmp_path_factory):
  """A base, and the losses on one device."""
  folder = tmp_path_factory.mktemp('one')
  base = processes.write_base(folder)
  file = processes.write_gin(folder / 'run.gin', more=BALANCED)
  processes.train(file, folder / 'run', base, TRAIN_STEPS=STEPS)
  return base, processes.losses(folder / 'run')


@pytest.mark.parametrize(
    ('model', 'experts'),
    [
        (1, 1),
        (2, 1),
        pytest.param(4, 1, marks=pytest.mark.long),
        (1, 2),
        (2, 4),
    ],
)
def test_the_losses_are_those_of_one_device(
    one_device, tmp_path, model, experts
):
  base, expected = one_device
  assert len(expected) == STEPS
  file = processes.write_gin(
      tmp_path / 'run.gin', EXPERTS if experts > 1 else '', more=BALANCED
  )
  macros = {
      'MODEL_DIR': str(tmp_path / 'run'), 'INITIAL_CHECKPOINT_PATH': base,
      'TRAIN_STEPS': STEPS, 'NUM_MODEL_PARTITIONS': model,
      **({'NUM_EXPERT_PARTITIONS': experts} if experts > 1 else {}),
  }
  with training.parsed('train', [file], **macros) as train:
    train()
    mesh = gin.get_bindings(train)['partitioner'].mesh
  losses = processes.losses(tmp_path / 'run')
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  assert len(set(losses)) == STEPS
  # Not the same by being replicated: the mesh of these gin files, and how a
  # parameter lies on it.
  data = 8 // (model * experts)
  assert mesh.shape == {'data': data, 'expert': experts, 'model': model}
  info = (tmp_path / 'run' / 'model-info.txt').read_text()
  lora_a = re.search(r'attention/query/adapter/lora_a .*', info)[0]
  assert ("'expert'" in lora_a) == (experts > 1)
