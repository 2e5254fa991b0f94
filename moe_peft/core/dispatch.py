# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Three ways to run the same mixture of experts.

A mixture has two linear halves, `down` [in -> rank] and `up` [rank -> out],
per expert. In between it is an array `hidden`, on which a method may apply a
function elementwise. What `hidden` looks like is the execution's business:

* `all_experts`: <float>[batch, length, rank * num_experts]. Every expert runs
  on every token, and the weights are applied at rank r, before `up`; an array
  with num_experts * features numbers per token is never built. Cheapest at the
  sizes of PEFT.
* `einsum`: <float>[num_experts, num_groups * expert_capacity, rank]. Tokens
  travel to buffers of their experts and back (expert_buffers.py). For experts
  that are sharded over devices.
* `ragged`: <float>[tokens * num_selected, rank]. Tokens are sorted by expert,
  `jax.lax.ragged_dot` runs each expert on its own rows.

Letters: b batch, l length, i in, o out, e experts, r rank; g groups, s tokens
of a group, c slots of an expert in a group; n rows.
"""

import functools

from absl import logging
from flax import struct
from flax.linen import partitioning
import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft.core import expert_buffers
from moe_peft.core import low_rank
from moe_peft.core import routing as routing_lib

EXECUTIONS = ('all_experts', 'einsum', 'ragged')

# Multiplications that sorting, gathering and scattering one number cost. From
# `python -m benchmarks` on a CPU: with 10 experts of rank 4, 2 of them taken,
# `ragged` adds 66 times what `all_experts` does, so 2 * (4 + 1300) for 40.
COST_OF_MOVING = 1000


@struct.dataclass
class AllExperts:
  """Every expert on every token, combined at rank r.

  Attributes:
    hidden: <float>[batch, length, rank * num_experts], rank-major; or
      [batch, length, rank] where all experts share `down`.
    combine_weights: <float>[batch, length, num_experts], or None for the one
      expert that needs no router.
  """

  hidden: jax.Array
  combine_weights: jax.Array | None

  def up(
      self, kernel: jax.Array, bias: jax.Array | None = None
  ) -> jax.Array:
    """Returns the mixture's output, <float>[batch, length, out].

    Args:
      kernel: <float>[num_experts, rank, out].
      bias: <float>[num_experts, out], or None.
    """
    hidden, weights = self.hidden, self.combine_weights
    num_experts, rank, out_features = kernel.shape
    if weights is None:
      update = low_rank.expand(hidden, kernel[0])
      return update if bias is None else update + bias[0]
    weights = weights.astype(hidden.dtype)
    if hidden.shape[-1] != rank * num_experts:
      hidden = jnp.repeat(hidden, num_experts, axis=-1)
    hidden *= jnp.tile(weights, rank)
    kernel = replicate(kernel).swapaxes(0, 1).reshape(-1, out_features)
    # So that a loop of decoding moves it once and not for every token.
    kernel = jax.lax.optimization_barrier(kernel)
    update = low_rank.expand(hidden, kernel)
    return update if bias is None else update + low_rank.expand(weights, bias)


@struct.dataclass
class Ragged:
  """Rows sorted by expert; each expert multiplies its own rows.

  Attributes:
    hidden: <float>[rows, rank].
    combine_weights: <float>[rows, 1].
    token: <int32>[rows], index of the token of each row.
    expert: <int32>[rows], ascending; num_experts for rows that are not used.
    group_sizes: <int32>[num_experts].
    shape: (batch, length).
  """

  hidden: jax.Array
  combine_weights: jax.Array
  token: jax.Array
  expert: jax.Array
  group_sizes: jax.Array
  shape: tuple[int, int] = struct.field(pytree_node=False)

  def up(
      self, kernel: jax.Array, bias: jax.Array | None = None
  ) -> jax.Array:
    """Returns the mixture's output, <float>[batch, length, out]."""
    outputs = jax.lax.ragged_dot(self.hidden, kernel, self.group_sizes)
    if bias is not None:
      outputs += _rows_of(bias, self.expert)
    outputs *= self.combine_weights.astype(outputs.dtype)
    batch, length = self.shape
    result = jnp.zeros((batch * length, kernel.shape[-1]), outputs.dtype)
    return result.at[self.token].add(outputs).reshape(batch, length, -1)


def _down_all_experts(inputs, kernel, bias, routing, product=None):
  """Returns an AllExperts; see `down`."""
  if product is None:
    product = low_rank.project(inputs, down_rows(kernel))
  if bias is not None:
    product += bias.swapaxes(0, 1).reshape(-1)
  weights = None if routing is None else routing.combine_weights
  return AllExperts(product, weights)


def _down_ragged(inputs, kernel, bias, routing):
  """Returns a Ragged; see `down`."""
  batch, length, in_features = inputs.shape
  weights = routing.combine_weights
  num_experts, k = weights.shape[-1], routing.num_selected
  # The k heaviest experts of a token hold all of its nonzero weights.
  _, expert = jax.lax.top_k(jax.lax.stop_gradient(weights), k)
  weights = jnp.take_along_axis(weights, expert, axis=-1).reshape(-1, 1)
  expert = jnp.where(weights[:, 0] > 0, expert.reshape(-1), num_experts)
  order = jnp.argsort(expert, stable=True)
  expert, token = expert[order], order // k
  group_sizes = jnp.sum(
      expert[:, None] == jnp.arange(num_experts), axis=0, dtype=jnp.int32
  )
  rows = inputs.reshape(-1, in_features)[token]
  if kernel.shape[0] == 1:
    hidden = rows @ kernel[0]
  else:
    hidden = jax.lax.ragged_dot(rows, kernel, group_sizes)
  if bias is not None:
    hidden += _rows_of(bias, expert)
  return Ragged(
      hidden, weights[order], token, expert, group_sizes, (batch, length)
  )


def down(
    execution: str,
    inputs: jax.Array,
    kernel: jax.Array,
    routing: routing_lib.Routing | None,
    bias: jax.Array | None = None,
    product: jax.Array | None = None,
):
  """Runs the first half of a mixture.

  Args:
    execution: One of `EXECUTIONS`.
    inputs: <float>[batch, length, in].
    kernel: <float>[num_experts, in, rank], or [1, in, rank] for a matrix that
      all experts share.
    routing: Who uses which expert; None for one expert without a router.
    bias: <float>[num_experts, rank] (or [1, rank] if shared), or None.
    product: <float>[batch, length, rank * num_experts], the inputs' products
      with `down_rows(kernel)`, or None if they are still to be made.

  Returns:
    The mixture, with `hidden` and `up`.
  """
  if routing is None or execution == 'all_experts':
    return _down_all_experts(inputs, kernel, bias, routing, product)
  if execution == 'einsum':
    return expert_buffers.down(inputs, kernel, bias, routing)
  return _down_ragged(inputs, kernel, bias, routing)


def down_rows(kernel: jax.Array) -> jax.Array:
  """Returns `down` kernels as rows, <float>[rank * num_experts, in].

  Rank-major, as `AllExperts.hidden`. These rows can share a matmul with those
  of the router.
  """
  in_features = kernel.shape[1]
  columns = replicate(kernel).transpose(1, 2, 0).reshape(in_features, -1)
  return low_rank.rows(columns)


def _rows_of(bias: jax.Array, expert: jax.Array) -> jax.Array:
  """Returns <float>[rows, features], `bias[expert]`; shared if of size 1."""
  return jnp.take(bias, expert, axis=0, mode='clip')


def replicate(kernel: jax.Array) -> jax.Array:
  """Gathers a kernel that is sharded by expert: it is small, tokens are not."""
  free = jax.sharding.PartitionSpec.UNCONSTRAINED
  names = (None,) + (free,) * (kernel.ndim - 1)
  return partitioning.with_sharding_constraint(kernel, names)


def choose(
    execution: str,
    routing: routing_lib.Routing | None,
    num_experts: int,
    rank: int,
) -> str:
  """Returns the execution to use; resolves 'auto' and says why, once.

  The cost of a token in multiplications, per input and output feature:

    all_experts  num_experts * rank
    einsum       slots + slots / group_size * rank, slots = num_experts * c
    ragged       k * (rank + COST_OF_MOVING)

  so rank space wins over `einsum` as soon as num_experts * rank is less than
  the slots of a group (group_size times the slots per token).

  Raises:
    errors.UserError: If there is no such execution.
  """
  if execution in EXECUTIONS:
    return execution
  if execution != 'auto':
    raise errors.UserError(
        f'There is no execution {execution!r}.',
        where='adapter.MoeAdapter.execution',
        remedy=f'Choose one of auto, {", ".join(EXECUTIONS)}.',
    )
  if routing is None:
    return 'all_experts'
  slots = num_experts * routing.expert_capacity
  costs = {
      'all_experts': num_experts * rank,
      'einsum': slots + slots / routing.group_size * rank,
      'ragged': routing.num_selected * (rank + COST_OF_MOVING),
  }
  best = min(costs, key=costs.get)
  numbers = ', '.join(f'{name} {cost:g}' for name, cost in costs.items())
  _log_once(
      f'execution = auto: {best}, the cheapest of {numbers} (multiplications '
      f'per token and feature; {num_experts} experts of rank {rank}, groups '
      f'of {routing.group_size} tokens, {routing.expert_capacity} slots).'
  )
  return best


@functools.cache
def _log_once(message: str) -> None:
  logging.info(message)
