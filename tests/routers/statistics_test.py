# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Router statistics against closed forms."""

import math

import numpy as np
import pytest

from moe_peft.routers import statistics


def test_one_expert_per_task_tells_everything():
  load = np.eye(4)
  assert statistics.mutual_information(load) == pytest.approx(math.log(4))
  assert statistics.mutual_information_limit(4, 4) == pytest.approx(math.log(4))


def test_equal_rows_tell_nothing():
  load = np.tile([0.7, 0.2, 0.1], (5, 1))
  assert statistics.mutual_information(load) == pytest.approx(0, abs=1e-12)


def test_binary_channel():
  # Two tasks and a symmetric channel with error 0.1: log 2 - H(0.1) nats.
  load = np.array([[0.9, 0.1], [0.1, 0.9]])
  noise = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
  expected = math.log(2) - noise
  assert statistics.mutual_information(load) == pytest.approx(expected)


def test_tasks_count_equally_whatever_their_total_weight():
  load = np.array([[0.9, 0.1], [0.1, 0.9]])
  scaled = load * np.array([[1.0], [0.01]])
  assert statistics.mutual_information(scaled) == pytest.approx(
      statistics.mutual_information(load)
  )


def test_limit_is_the_smaller_side():
  assert statistics.mutual_information_limit(2, 8) == math.log(2)
  load = np.array([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
  assert statistics.mutual_information(load) == pytest.approx(math.log(2))


def test_unusable_tasks_are_left_out():
  load = np.array([[1.0, 0], [0, 1.0], [np.nan, np.nan], [0, 0]])
  assert statistics.mutual_information(load) == pytest.approx(math.log(2))
  assert math.isnan(statistics.mutual_information(load[:1]))
  assert math.isnan(statistics.mutual_information(load[1:]))


@pytest.mark.parametrize(
    'row, expected',
    [
        ([0.25] * 4, 1.0),
        ([3.0] * 4, 1.0),
        ([1, 0, 0, 0], 0.0),
        ([0.5, 0.5, 0, 0], 0.5),
    ],
)
def test_normalized_entropy(row, expected):
  got = statistics.normalized_entropy(np.array([row, row]))
  np.testing.assert_allclose(got, [expected, expected], atol=1e-12)


def test_normalized_entropy_of_one_expert_is_undefined():
  assert np.isnan(statistics.normalized_entropy(np.ones((3, 1)))).all()


def test_entropy_is_in_nats():
  assert statistics.entropy([0.5, 0.5]) == pytest.approx(math.log(2))


def test_dead_experts_are_dead_for_every_task():
  load = np.array([[0.999, 0.0, 0.001, 0.0], [0.5, 0.0, 0.0, 0.5]])
  # Expert 2 gets 0.4 % of the uniform 0.25 at most, expert 3 half of a task.
  assert statistics.dead_experts(load) == (1, 2)
  assert statistics.dead_experts(load, share=0.001) == (1,)
  assert statistics.dead_experts(np.full((2, 2), np.nan)) == ()


def test_random_tasks_show_the_information_of_chance():
  random = np.random.default_rng(0)
  tasks = np.repeat(np.arange(4), 10)
  by_chance = random.dirichlet(np.ones(8), 40)
  real = 0.5 * by_chance + 0.5 * np.eye(8)[tasks]
  for loads, is_real in ((by_chance, False), (real, True)):
    per_task = np.eye(4)[tasks].T @ loads
    information = statistics.mutual_information(per_task)
    chance = statistics.permuted_information(loads, tasks, 50)
    assert chance.mean() > 0  # The bias of few rows.
    assert (information > 3 * chance.max()) == is_real
    assert (information < chance.max()) == (not is_real)


def test_permuting_rows_of_one_task_changes_nothing():
  loads = np.array([[3.0, 1.0], [1.0, 3.0], [1.0, 1.0]])
  chance = statistics.permuted_information(loads, np.array([0, 0, 0]), 5)
  assert np.isnan(chance).all()  # One task: there is no information to have.


def test_drift():
  before = np.array([[0.5, 0.5, 0], [1, 0, 0], [0.2, 0.3, 0.5]])
  assert statistics.drift(before, before) == 0
  # Only shares matter, not how much weight there is.
  assert statistics.drift(before, 3 * before) == pytest.approx(0)
  # Half of the first token's weight moves, all of the second one's.
  after = np.array([[0, 0.5, 0.5], [0, 0, 1], [0.2, 0.3, 0.5]])
  expected = (0.5 + 1 + 0) / 3
  assert statistics.drift(before, after) == pytest.approx(expected)
  # The mean load sees nothing of two tokens that swap their experts.
  swapped = before[[1, 0, 2]]
  np.testing.assert_allclose(swapped.mean(0), before.mean(0))
  assert statistics.drift(before, swapped) == pytest.approx((0.5 + 0.5) / 3)
  # A token without an expert has no distribution.
  none = np.array([[0, 0, 0], [0, 0, 1], [0.2, 0.3, 0.5]])
  assert statistics.drift(before, none) == pytest.approx((1 + 0) / 2)
  assert math.isnan(statistics.drift(before, np.zeros((3, 3))))


@pytest.mark.parametrize(
    ('load', 'number'),
    [([0.25] * 4, 4), ([1, 0, 0, 0], 1), ([0.5, 0.5, 0, 0], 2)],
)
def test_effective_experts(load, number):
  assert statistics.effective_experts(load) == pytest.approx(number)


@pytest.mark.parametrize(
    ('load', 'selected', 'collapsed'),
    [
        # Soft: every token uses all 8 experts, and only weights decide.
        ([0.125] * 8, 8, False),
        ([0.97] + [0.03 / 7] * 7, 8, True),
        ([0.5] + [0.5 / 7] * 7, 8, False),
        # Top-2: all tokens take the same two, or they share eight.
        ([0.5, 0.5] + [0] * 6, 2, True),
        ([0.45, 0.45] + [0.1 / 6] * 6, 2, False),
        ([0.125] * 8, 2, False),
        # All experts are the same one: nothing can collapse.
        ([1.0], 1, False),
    ],
)
def test_collapse(load, selected, collapsed):
  assert statistics.is_collapsed(np.array(load), selected) == collapsed
