# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Shapes that know their places; T5X is not needed."""

import jax

from moe_peft.t5x import layout
from moe_peft.training import memory


def test_one_spec_may_be_that_of_a_subtree():
  mesh = jax.make_mesh((2,), ('model',), devices=jax.devices()[:2])
  spec = jax.sharding.PartitionSpec
  x = jax.ShapeDtypeStruct((4, 6), 'float32')
  laid = layout.lay_out(
      {'a': {'b': x, 'c': x}, 'd': x}, {'a': spec(None, 'model'), 'd': None},
      mesh,
  )
  assert memory.num_bytes_of_device(laid['a']) == 2 * 4 * 3 * 4
  assert memory.num_bytes_of_device(laid['d']) == 4 * 6 * 4
