# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""PARAM_BUDGET under stock T5X: the macro and the mechanism of our engine."""

import re

import pytest

from moe_peft.core import trainable
from tests.t5x import networks
from tests.t5x import training

pytest.importorskip('t5x')
pytestmark = [pytest.mark.t5x, pytest.mark.slow]


def test_training_and_evaluation_choose_the_same_rank(bases, tmp_path):
  base, base_params = bases('examples.t5')
  macros = {'NUM_EXPERTS': 3, 'PARAM_BUDGET': 5000}
  state = training.train(
      networks.adapted(
          'molora', includes="include 'gin/runs/t5x_adapter_checkpoints.gin'"
      ),
      tmp_path / 'run',
      INITIAL_CHECKPOINT_PATH=base,
      TRAIN_STEPS=2,
      **macros,
  )
  training.check_trained(state, base_params, 2)
  adapters, _ = trainable.split(training.flat_params(state))
  per_rank = sum(
      x.size // x.shape[axis]
      for path, x in adapters.items()
      for name, axis in (('lora_a', -1), ('lora_b', -2))
      if path.endswith(name)
  )
  num_params = trainable.num_params(adapters)
  assert 5000 - per_rank < num_params <= 5000
  (rank,) = {x.shape[-1] for k, x in adapters.items() if k.endswith('lora_a')}
  # The folder of the run says what was chosen; 4 is that of the method's file.
  config = (tmp_path / 'run' / 'config.gin').read_text()
  assert rank != 4 and re.search(rf'^RANK = {rank}$', config, re.M)

  folder = tmp_path / 'eval'
  training.run(
      'eval',
      networks.adapted('molora', run='t5x_eval'),
      folder,
      CHECKPOINT_PATH=str(tmp_path / 'run' / 'checkpoint_2'),
      **macros,
  )
  assert (folder / 'inference_eval' / 'aggregate.json').is_file()
