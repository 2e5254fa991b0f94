# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Router statistics against closed forms."""

import math

import numpy as np
import pytest

from moe_peft.analysis import statistics


def test_one_expert_per_task_tells_everything():
  load = np.eye(4)
  assert statistics.mutual_information(load) == pytest.approx(2.0)
  assert statistics.mutual_information_limit(4, 4) == pytest.approx(2.0)


def test_equal_rows_tell_nothing():
  load = np.tile([0.7, 0.2, 0.1], (5, 1))
  assert statistics.mutual_information(load) == pytest.approx(0, abs=1e-12)


def test_binary_channel():
  # Two tasks and a symmetric channel with error 0.1: 1 - H2(0.1) bits.
  load = np.array([[0.9, 0.1], [0.1, 0.9]])
  h2 = -0.9 * math.log2(0.9) - 0.1 * math.log2(0.1)
  assert statistics.mutual_information(load) == pytest.approx(1 - h2)


def test_tasks_count_equally_whatever_their_total_weight():
  load = np.array([[0.9, 0.1], [0.1, 0.9]])
  scaled = load * np.array([[1.0], [0.01]])
  assert statistics.mutual_information(scaled) == pytest.approx(
      statistics.mutual_information(load)
  )


def test_limit_is_the_smaller_side():
  assert statistics.mutual_information_limit(2, 8) == pytest.approx(1.0)
  load = np.array([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
  assert statistics.mutual_information(load) == pytest.approx(1.0)


def test_unusable_tasks_are_left_out():
  load = np.array([[1.0, 0], [0, 1.0], [np.nan, np.nan], [0, 0]])
  assert statistics.mutual_information(load) == pytest.approx(1.0)
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
