# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The execution `einsum`: tokens travel to buffers of their experts and back.

Both ways are masked matmuls (GShard, arXiv 2006.16668). It is for experts that
are sharded over devices: the buffers travel, the experts stay where they are.
Letters are those of `dispatch.py`.
"""

from flax import struct
from flax.linen import partitioning
import jax
import jax.numpy as jnp

from moe_peft.core import routing as routing_lib

# Features lie as the layer has them; a constraint on them would gather.
_FREE = jax.sharding.PartitionSpec.UNCONSTRAINED


@struct.dataclass
class Einsum:
  """Tokens travel to expert buffers and back by masked matmuls.

  Attributes:
    hidden: <float>[num_experts, num_groups * expert_capacity, rank].
    combine_array: <float>[num_groups, group_size, num_experts,
      expert_capacity].
    shape: (batch, length).
  """

  hidden: jax.Array
  combine_array: jax.Array
  shape: tuple[int, int] = struct.field(pytree_node=False)

  def up(
      self, kernel: jax.Array, bias: jax.Array | None = None
  ) -> jax.Array:
    """Returns the mixture's output, <float>[batch, length, out]."""
    outputs = jnp.einsum('enr,ero->eno', self.hidden, kernel)
    if bias is not None:
      outputs += bias[:, None]
    groups, _, num_experts, slots = self.combine_array.shape
    outputs = outputs.reshape(num_experts, groups, slots, -1)
    outputs = _constrain_experts(outputs)
    outputs = _constrain_groups(outputs.swapaxes(0, 1))
    combine_array = self.combine_array.astype(outputs.dtype)
    outputs = jnp.einsum('geco,gsec->gso', outputs, combine_array)
    return outputs.reshape(*self.shape, -1)


def down(
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    routing: routing_lib.Routing,
) -> Einsum:
  """Runs the first half of a mixture; the arguments are `dispatch.down`'s."""
  batch, length, in_features = inputs.shape
  size = routing.group_size
  num_experts = routing.combine_weights.shape[-1]
  weights = routing.combine_weights.reshape(-1, size, num_experts)
  dispatch_mask, combine_array = dispatch_arrays(
      weights, routing.expert_capacity
  )
  groups = inputs.reshape(-1, size, in_features)
  dispatch_mask = dispatch_mask.astype(inputs.dtype)
  buffers = jnp.einsum('gsi,gsec->geci', groups, dispatch_mask)
  buffers = _constrain_groups(buffers)
  buffers = _constrain_experts(buffers.swapaxes(0, 1))
  buffers = buffers.reshape(num_experts, -1, in_features)
  kernel = jnp.broadcast_to(kernel, (num_experts, *kernel.shape[1:]))
  hidden = jnp.einsum('eni,eir->enr', buffers, kernel)
  if bias is not None:
    hidden += bias[:, None]
  return Einsum(hidden, combine_array, (batch, length))


def dispatch_arrays(
    combine_weights: jax.Array, expert_capacity: int
) -> tuple[jax.Array, jax.Array]:
  """Returns (dispatch_mask, combine_array).

  Args:
    combine_weights: <float32>[num_groups, group_size, num_experts], with at
      most `expert_capacity` nonzero weights of each expert in a group.
    expert_capacity: Slots of each expert in a group.

  Returns:
    dispatch_mask <bool> and combine_array <float32>, both [num_groups,
    group_size, num_experts, expert_capacity].
  """
  used = combine_weights > 0
  slot = jnp.where(used, jnp.cumsum(used, axis=1) - 1, -1)
  dispatch_mask = slot[..., None] == jnp.arange(expert_capacity)
  return dispatch_mask, dispatch_mask * combine_weights[..., None]


def _constrain_groups(x: jax.Array) -> jax.Array:
  """Lays buffers [g, e, c, features] where their tokens are.

  Groups are split over all axes of the batch.
  """
  return partitioning.with_sharding_constraint(x, ('batch', None, None, _FREE))


def _constrain_experts(x: jax.Array) -> jax.Array:
  """Lays buffers [e, g, c, features] where their experts are.

  From one of the two layouts to the other XLA needs one all-to-all over the
  axis `expert`.
  """
  names = ('expert', 'expert_replicas', None, _FREE)
  return partitioning.with_sharding_constraint(x, names)
