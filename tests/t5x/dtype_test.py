# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A base in bfloat16, adapters and optimizer in float32."""

import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import trainable
from tests.t5x import networks
from tests.t5x import training

pytest.importorskip('t5x')
pytestmark = [pytest.mark.t5x, pytest.mark.slow]


def test_the_base_is_bfloat16_and_nothing_else(bases, tmp_path):
  base, base_params = bases('examples.t5')
  config = networks.adapted(
      'molora',
      includes="include 'gin/runs/t5x_adapter_checkpoints.gin'",
      more=networks.FEW_SITES
      + "BASE_DTYPE = 'bfloat16'\nCHECKPOINT_PERIOD = 2\n",
  )
  macros = {'INITIAL_CHECKPOINT_PATH': base, 'NUM_EXPERTS': 3, 'RANK': 2}
  for steps in (2, 4):  # From the base, then from a checkpoint.
    state = training.train(
        config, tmp_path / 'run', TRAIN_STEPS=steps, **macros
    )
    for path, value in training.flat_params(state).items():
      if trainable.is_adapter(path):
        assert value.dtype == np.float32, path
      else:
        expected = np.asarray(base_params[path], jnp.bfloat16)
        np.testing.assert_array_equal(value, expected, err_msg=path)
        assert value.dtype == jnp.bfloat16, path
    moments = trainable.flatten(state.state_dict()['state'])
    assert all(x.dtype != jnp.bfloat16 for x in moments.values())
