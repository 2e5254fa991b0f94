# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Capacity: how many tokens an expert takes, and which.

Letters: g groups, s tokens of a group, e experts, c slots of an expert.

The rules, all tested:

* A token that finds an expert full loses that expert only; if it loses all of
  them the frozen layer's output stays.
* Padding takes no slot.
* `position`: earlier tokens first, whatever rank the expert has among a
  token's choices. So a later token never takes a slot from an earlier one (the
  order of GShard and Flaxformer, all first choices before all second ones,
  does not have this property). `probability`: the surest tokens first.
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
class Capacity:
  """Limits the tokens that each expert takes from a group of tokens.

  Attributes:
    capacity_factor: The limit is `capacity_factor * group_size / num_experts`,
      rounded, at least 1 (Flaxformer's convention: the number of selected
      experts is not in it).
    counts_selected: Multiplies that by `num_selected_experts` (V-MoE's
      convention), so that 1.0 is just enough for a perfect balance.
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
  counts_selected: bool = False
  expert_capacity: int | None = None
  group_size: int | None = None
  priority: str = 'position'
  at_evaluation: bool = False

  def limit(
      self, group_size: int, num_experts: int, num_selected: int
  ) -> int:
    """Returns c, the slots of each expert in a group, at most `group_size`."""
    if self.expert_capacity is not None:
      return min(self.expert_capacity, group_size)
    tokens = self.capacity_factor * group_size / num_experts
    if self.counts_selected:
      tokens *= num_selected
    return min(max(1, round(tokens)), group_size)


def check(capacity: Capacity, selection: str, causal: bool) -> None:
  """Raises errors.UserError for options that cannot be."""
  name = 'capacity.Capacity'
  given = (capacity.capacity_factor, capacity.expert_capacity)
  if (given[0] is None) == (given[1] is None):
    raise errors.UserError(
        f'{name} needs exactly one of capacity_factor (got {given[0]}) and '
        f'expert_capacity (got {given[1]}). For no limit bind '
        'routing.Router.capacity = None.'
    )
  if any(x is not None and x <= 0 for x in given + (capacity.group_size,)):
    raise errors.UserError(
        f'{name}: capacity_factor, expert_capacity and group_size must be '
        f'positive, got {given[0]}, {given[1]} and {capacity.group_size}.'
    )
  if capacity.priority not in ('position', 'probability'):
    raise errors.UserError(
        f"{name}.priority = {capacity.priority!r} is neither 'position' nor "
        "'probability'."
    )
  if selection == 'all':
    raise errors.UserError(
        f"{name} limits a selection, but routing.Router.selection = 'all' "
        "gives every token to every expert. Bind routing.Router.selection = "
        "'top_k' or routing.Router.capacity = None."
    )
  if causal and capacity.priority == 'probability':
    raise errors.UserError(
        f"{name}.priority = 'probability' lets later tokens push out earlier "
        'ones and is for encoders only. Use priority = \'position\', or '
        'restrict SITES to encoder layers.'
    )


def group_shape(
    group_size: int | None, batch: int, length: int
) -> tuple[int, int]:
  """Returns (num_groups, group_size).

  Raises:
    errors.UserError: If the groups do not divide the tokens.
  """
  size = group_size or length
  fits = length % size == 0 or (
      size % length == 0 and batch * length % size == 0
  )
  if not fits:
    raise errors.UserError(
        f'capacity.Capacity.group_size = {size} fits neither into the length '
        f'{length} nor a whole number of rows of a batch of {batch}. Use a '
        f'divisor of {length}, or None for one group per row.'
    )
  return batch * length // size, size


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
    length: int,
    expert_capacity: int,
    priority: str,
) -> jax.Array:
  """Returns which selections find a slot.

  Args:
    selected: <bool>[num_groups, group_size, num_experts], padding False.
    scores: <float32>[num_groups, group_size, num_experts], who goes first if
      `priority` is 'probability'.
    segment_ids: <int32>[num_groups, group_size] of packed rows, or None.
    length: Tokens of a row.
    expert_capacity: c.
    priority: 'position' or 'probability'.

  Returns:
    <bool>[num_groups, group_size, num_experts].
  """
  size = selected.shape[1]
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
    return selected & (taken <= quota)
  # Sorted by example, then by falling score; a place in the order is a slot.
  scores = jax.lax.stop_gradient(jnp.where(selected, scores, -1.0))
  example = jnp.broadcast_to(start, selected.shape)
  index = jnp.broadcast_to(jnp.arange(size)[:, None], selected.shape)
  *_, order = jax.lax.sort(
      (example, -scores, index), dimension=1, num_keys=2, is_stable=True
  )
  place = jnp.argsort(order, axis=1)
  return selected & (place - example < quota)
