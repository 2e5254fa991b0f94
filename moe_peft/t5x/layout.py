# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""States of T5X as shapes that know their types and their places."""

from typing import Any

import jax
import jax.numpy as jnp

from moe_peft.core import trainable


def restored(state: Any, trainable_regex: str, dtype: Any) -> Any:
  """A state as it is once the base is there, in the type that it is read in.

  Args:
    state: T5X's state of shapes.
    trainable_regex: Which parameters train; the others are the base.
    dtype: Type of the base.
  """
  is_trained = trainable.matcher(trainable_regex)

  def cast(keys, x):
    if is_trained(trainable.path_of(keys)):
      return x
    return jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype))

  return state.replace_params(
      jax.tree_util.tree_map_with_path(cast, state.params)
  )


def lay_out(tree: Any, specs: Any, mesh: jax.sharding.Mesh) -> Any:
  """The same shapes with the shardings that T5X gives them.

  Args:
    tree: Shapes.
    specs: Their partition specs, None for none; one may be that of a subtree.
    mesh: The mesh.
  """

  def struct(x, spec):
    spec = jax.sharding.PartitionSpec() if spec is None else spec
    sharding = jax.sharding.NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  return jax.tree.map(
      lambda spec, part: jax.tree.map(lambda x: struct(x, spec), part),
      specs,
      tree,
      is_leaf=lambda x: x is None or isinstance(x, jax.sharding.PartitionSpec),
  )
