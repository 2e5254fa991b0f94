# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Capacity: how many tokens an expert takes, and which.

Letters: g groups, s tokens of a group, e experts, c slots of an expert.

The rules, all tested:

* A token that finds an expert full loses that expert only; if it loses all of
  them the frozen layer's output stays.
* Padding takes no slot.
* `position`: earlier tokens go first, whatever rank the expert has among a
  token's choices. So a later token never takes a slot from an earlier one (the
  order of GShard and Flaxformer, all first choices before all second ones,
  does not have this property). `probability`: the tokens with the highest
  scores go first.
* Packed rows: a group's slots are shared among its packed examples by their
  lengths. An example at positions [start, end) owns
  `ceil(c * end / s) - ceil(c * start / s)` of every expert's c slots, and only
  its own tokens compete for them; padding belongs to the example before it.
  So no example can take a slot of another one, and the buffers stay at c.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_peft import errors


@dataclasses.dataclass(frozen=True)
class Groups:
  """How the tokens of a batch are grouped, and what an expert takes of a group.

  Attributes:
    num_groups: Number of groups, g.
    group_size: Tokens of a group, s.
    row_length: Tokens of a row of the batch.
    expert_capacity: Slots of each expert in a group, c; None for no limit.
  """

  num_groups: int
  group_size: int
  row_length: int
  expert_capacity: int | None = None


@dataclasses.dataclass(frozen=True)
class Capacity:
  """Limits the tokens that each expert takes from a group of tokens.

  Attributes:
    capacity_factor: The limit is `capacity_factor * group_size / num_experts`,
      rounded, at least 1 (Flaxformer's convention: the number of selected
      experts is not in it).
    expert_capacity: The limit itself, instead of `capacity_factor`.
    group_size: Tokens per group; a divisor of the length, or a multiple of it
      that divides batch * length. None: one group per row, so that rows never
      compete.
    priority: 'position' or 'probability', see above. The latter lets later
      tokens push out earlier ones and is refused in decoders.
    at_evaluation: Keep the limit when there is no 'dropout' rng. By default
      evaluation drops nothing, so that a result does not depend on the
      neighbors in a batch.
  """

  capacity_factor: float | None = None
  expert_capacity: int | None = None
  group_size: int | None = None
  priority: str = 'position'
  at_evaluation: bool = False

  def check(self, causal: bool) -> None:
    """Raises errors.UserError for options that contradict each other.

    Args:
      causal: Whether the routed tokens must not see later ones.
    """
    given = (self.capacity_factor, self.expert_capacity)
    if (given[0] is None) == (given[1] is None):
      raise errors.UserError(
          f'A capacity needs exactly one of capacity_factor (got {given[0]}) '
          f'and expert_capacity (got {given[1]}).',
          where='capacity.Capacity',
          remedy='Bind one of them, or bind the capacity of the router to None '
          'for no limit.',
      )
    if any(x is not None and x <= 0 for x in (*given, self.group_size)):
      raise errors.UserError(
          'capacity_factor, expert_capacity and group_size must be positive, '
          f'got {given[0]}, {given[1]} and {self.group_size}.',
          where='capacity.Capacity',
      )
    if self.priority not in ('position', 'probability'):
      raise errors.UserError(
          f"{self.priority!r} is neither 'position' nor 'probability'.",
          where='capacity.Capacity.priority',
      )
    if causal and self.priority == 'probability':
      raise errors.UserError(
          "'probability' lets later tokens push out earlier ones and is for "
          'encoders only.',
          where='capacity.Capacity.priority',
          remedy="Use 'position', or restrict SITES to encoder layers.",
      )

  def limit(self, group_size: int, num_experts: int) -> int:
    """Returns c, the slots of each expert in a group, at most `group_size`."""
    if self.expert_capacity is not None:
      return min(self.expert_capacity, group_size)
    slots = self.capacity_factor * group_size / num_experts
    return min(max(1, round(slots)), group_size)

  def groups(
      self, batch: int, length: int, num_experts: int, units: int = 1
  ) -> Groups:
    """Groups the tokens of a batch.

    Args:
      batch: Rows.
      length: Routed units of a row: tokens, or their heads or ranks.
      num_experts: e.
      units: Routed units of a token.

    Raises:
      errors.UserError: If the groups do not divide the tokens.
    """
    size = self.group_size * units if self.group_size else length
    fits = length % size == 0 or (
        size % length == 0 and batch * length % size == 0
    )
    if not fits:
      raise errors.UserError(
          f'{size} fits neither into the length {length} nor a whole number of '
          f'rows of a batch of {batch}.',
          where='capacity.Capacity.group_size',
          remedy=f'Use a divisor of {length}, or None for one group per row.',
      )
    limit = self.limit(size, num_experts)
    return Groups(batch * length // size, size, length, limit)


def example_quota(
    segment_ids: jax.Array, length: int, expert_capacity: int
) -> tuple[jax.Array, jax.Array]:
  """Returns (start, quota) of the packed example that each token is in.

  Args:
    segment_ids: <int32>[num_groups, group_size], 0 for padding.
    length: Tokens of a row; a row's start is also the start of an example.
    expert_capacity: c.

  Returns:
    <int32>[num_groups, group_size] index of the example's first token in its
    group, and the slots of each expert that the example owns.
  """
  size = segment_ids.shape[1]
  index = jnp.arange(size)
  # Padding takes the id of the example before it.
  filled = jax.lax.cummax(segment_ids + index // length * (1 << 20), axis=1)
  before = jnp.pad(filled, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
  is_start = filled != before
  start = jax.lax.cummax(jnp.where(is_start, index, 0), axis=1)
  next_start = jnp.pad(
      jnp.where(is_start, index, size), ((0, 0), (0, 1)), constant_values=size
  )[:, 1:]
  end = jax.lax.cummin(next_start, axis=1, reverse=True)
  before_slots = -(-expert_capacity * start // size)
  return start, -(-expert_capacity * end // size) - before_slots


def within_capacity(
    selected: jax.Array,
    scores: jax.Array,
    segment_ids: jax.Array | None,
    groups: Groups,
    priority: str,
) -> jax.Array:
  """Returns which selections find a slot.

  Args:
    selected: <bool>[batch, length, num_experts], padding False.
    scores: <float32>[batch, length, num_experts], who goes first if `priority`
      is 'probability'.
    segment_ids: <int32>[batch, length] of packed rows, or None.
    groups: The groups; their `expert_capacity` is c.
    priority: 'position' or 'probability'.

  Returns:
    <bool>[batch, length, num_experts].
  """
  size, expert_capacity = groups.group_size, groups.expert_capacity
  whole, length = selected.shape, groups.row_length
  selected, scores, segment_ids = (
      x if x is None else x.reshape(-1, size, *x.shape[2:])
      for x in (selected, scores, segment_ids)
  )
  if segment_ids is None:
    start, quota = 0, expert_capacity
  else:
    start, quota = example_quota(segment_ids, length, expert_capacity)
    start, quota = start[..., None], quota[..., None]
  if priority == 'position':
    taken = jnp.cumsum(selected, axis=1)
    if segment_ids is not None:
      first = jnp.broadcast_to(start, selected.shape)
      counted = taken - selected  # Selections before a token.
      taken -= jnp.take_along_axis(counted, first, axis=1)
    return (selected & (taken <= quota)).reshape(whole)
  # Sorted by example, then by falling score; a place in the order is a slot.
  scores = jax.lax.stop_gradient(jnp.where(selected, scores, -1.0))
  example = jnp.broadcast_to(start, selected.shape)
  index = jnp.broadcast_to(jnp.arange(size)[:, None], selected.shape)
  *_, order = jax.lax.sort(
      (example, -scores, index), dimension=1, num_keys=2, is_stable=True
  )
  place = jnp.argsort(order, axis=1)
  return (selected & (place - example < quota)).reshape(whole)
