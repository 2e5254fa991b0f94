# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The learning rate over the steps of a run."""

import numpy as np
import pytest

from moe_peft.training import schedules
from tests import refusals


def test_it_rises_to_the_peak_and_falls_to_zero():
  schedule = schedules.warmup_cosine(2.0, warmup_steps=4, train_steps=12)
  rates = [float(schedule(step)) for step in (0, 2, 4, 8, 12)]
  np.testing.assert_allclose(rates, [0, 1, 2, 1, 0], atol=1e-6)


@pytest.mark.parametrize(
    ('warmup', 'steps', 'where'),
    [(5, 5, 'WARMUP_STEPS'), (-1, 5, 'WARMUP_STEPS'), (0, 0, 'TRAIN_STEPS')],
)
def test_a_warm_up_ends_before_the_run(warmup, steps, where):
  with refusals.refused(where):
    schedules.warmup_cosine(1.0, warmup, steps)
