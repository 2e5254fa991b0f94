# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Parts of rows are put together as they were cut."""

import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import partitioning
from moe_peft.models import parts


def test_numbers_of_a_device_are_those_of_a_mesh():
  """Of JAX's own context, or, where that is empty, of what is said."""
  assert parts.on_a_device(64) == 64
  with partitioning.use_mesh(partitioning.make_mesh(2, 2)):
    assert parts.on_a_device(64) == 8
  with parts.split_over(4):
    assert parts.on_a_device(64) == 16
  assert parts.split_over(4)(parts.on_a_device)(64) == 16
  assert parts.on_a_device(64) == 64


@pytest.mark.parametrize('num_parts', [1, 2, 3, 5, 100])
def test_parts_are_joined_in_order(num_parts):
  """Of arrays that are cut on different axes; five are cut evenly by none."""
  rows = jnp.arange(30.0).reshape(2, 5, 3)
  columns = jnp.arange(10.0).reshape(2, 1, 5)
  joined = parts.run(
      lambda x, y: {'sum': x + jnp.moveaxis(y, 2, 1)}, 5, num_parts, (rows, 1),
      (columns, 2),
  )
  np.testing.assert_array_equal(
      joined['sum'], rows + jnp.moveaxis(columns, 2, 1)
  )
