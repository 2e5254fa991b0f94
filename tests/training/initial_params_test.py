# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a base holds is kept, and what it lacks is initialized."""

import jax
import jax.numpy as jnp
import numpy as np

from moe_peft.training import initial_params


def test_a_base_is_completed_by_initial_values():
  def init(rng):
    kernel = jax.random.normal(rng, (2, 3))
    return {'params': {'layer': {'kernel': kernel, 'bias': jnp.zeros(3)}}}

  base, rng = {'layer/bias': np.ones(3)}, jax.random.key(0)
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  params = initial_params.complete(base, init, rng, {'layer/kernel': here})
  assert set(params) == {'layer/kernel', 'layer/bias'}
  np.testing.assert_array_equal(params['layer/bias'], base['layer/bias'])
  kernel = init(rng)['params']['layer']['kernel']
  np.testing.assert_allclose(params['layer/kernel'], kernel, rtol=1e-6)
