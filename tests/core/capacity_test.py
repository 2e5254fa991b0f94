# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Who finds a slot, worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import capacity

# One group of six tokens, two experts.
SELECTED = np.array(
    [[1, 1], [1, 0], [0, 1], [1, 0], [1, 1], [1, 0]], bool
)[None]
SCORES = np.array([1, 6, 3, 4, 5, 2], np.float32)[None, :, None] * np.ones(2)


def within(limit, priority='position', segment_ids=None, selected=SELECTED,
           length=6):
  rows = lambda x: jnp.asarray(x).reshape(-1, length, *x.shape[2:])
  ids = None if segment_ids is None else rows(np.array([segment_ids]))
  groups = capacity.Groups(1, 6, length, limit)
  kept = capacity.within_capacity(
      rows(selected), rows(SCORES), ids, groups, priority
  )
  return np.asarray(kept).reshape(6, 2).astype(int)


def test_earlier_tokens_come_first():
  # Expert 0 wants tokens 0 1 3 4 5 and takes 0 1; expert 1 wants 0 2 4.
  np.testing.assert_array_equal(
      within(2), [[1, 1], [1, 0], [0, 1], [0, 0], [0, 0], [0, 0]]
  )


def test_surest_tokens_come_first():
  # Scores 1 6 3 4 5 2: expert 0 takes tokens 1 and 4, expert 1 2 and 4.
  np.testing.assert_array_equal(
      within(2, 'probability'), [[0, 0], [1, 0], [0, 1], [0, 0], [1, 1], [0, 0]]
  )


def test_packed_examples_own_their_share():
  # Three slots, examples of four and two tokens: ceil(3*4/6) = 2, and 3-2 = 1.
  ids = [1, 1, 1, 1, 2, 2]
  np.testing.assert_array_equal(
      within(3, segment_ids=ids),
      [[1, 1], [1, 0], [0, 1], [0, 0], [1, 1], [0, 0]],
  )
  np.testing.assert_array_equal(
      within(3, 'probability', ids),
      [[0, 1], [1, 0], [0, 1], [1, 0], [1, 1], [0, 0]],
  )


@pytest.mark.parametrize('priority', ['position', 'probability'])
def test_packed_examples_never_touch_each_other(priority):
  ids = [1, 1, 2, 2, 2, 0]
  for example in (1, 2):
    mine = np.array(ids) == example
    results = []
    for others in (0, 1):
      selected = np.where(mine[:, None], SELECTED[0], bool(others))
      selected &= np.array(ids)[:, None] > 0
      results.append(within(3, priority, ids, selected[None])[mine])
    np.testing.assert_array_equal(*results)


def test_shares_add_up_to_the_capacity():
  ids = jnp.array([[1, 2, 2, 3, 3, 3, 3, 0], [1, 1, 1, 1, 1, 1, 0, 0]])
  for slots in range(1, 9):
    start, quota = capacity.example_quota(ids, 8, slots)
    first = np.asarray(start) == np.arange(8)
    np.testing.assert_array_equal((quota * first).sum(-1), [slots, slots])
    assert (quota >= 0).all()


def test_padding_belongs_to_the_example_before_it():
  # A row with one packed example is a row without packing.
  selected = SELECTED & (np.arange(6) < 4)[:, None]
  np.testing.assert_array_equal(
      within(3, segment_ids=[1, 1, 1, 1, 0, 0], selected=selected),
      within(3, selected=selected),
  )


def test_groups_over_several_rows_keep_rows_apart():
  # Two rows of three, ids start anew: two examples, not one.
  ids = [1, 1, 1, 1, 1, 1]
  got = within(2, segment_ids=ids, length=3)
  np.testing.assert_array_equal(
      got, [[1, 1], [0, 0], [0, 0], [1, 0], [0, 1], [0, 0]]
  )


@pytest.mark.parametrize('priority', ['position', 'probability'])
@pytest.mark.parametrize('slots', [1, 2, 3, 5])
def test_no_buffer_overflows(priority, slots):
  key = jax.random.key(slots)
  selected = jax.random.bernoulli(key, 0.7, (20, 12, 4))
  scores = jax.random.uniform(key, (20, 12, 4))
  cuts = jax.random.bernoulli(jax.random.key(9), 0.3, (20, 12))
  ids = 1 + jnp.cumsum(cuts, axis=1)
  groups = capacity.Groups(20, 12, 12, slots)
  kept = capacity.within_capacity(selected, scores, ids, groups, priority)
  assert kept.sum(axis=1).max() == slots
  assert not (kept & ~selected).any()


def test_conventions():
  # 64 tokens, 8 experts, as Flaxformer: 1.25 * 64 / 8.
  assert capacity.Capacity(capacity_factor=1.25).limit(64, 8) == 10
  assert capacity.Capacity(expert_capacity=7).limit(64, 8) == 7
  assert capacity.Capacity(capacity_factor=0.01).limit(64, 8) == 1
  assert capacity.Capacity(capacity_factor=99.0).limit(64, 8) == 64


@pytest.mark.slow
@pytest.mark.parametrize(
    ('size', 'want'), [(None, (4, 6)), (3, (8, 3)), (12, (2, 12)), (6, (4, 6))]
)
def test_groups(size, want):
  groups = capacity.Capacity(1.0, group_size=size).groups(4, 6, num_experts=2)
  assert (groups.num_groups, groups.group_size) == want
