# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""T5X runs that diverge end."""

import types

from clu import values
import numpy as np
import pytest

from tests.t5x import networks
from tests.t5x import training

pytest.importorskip('t5x')
actions = pytest.importorskip('moe_peft.t5x.actions')
pytestmark = pytest.mark.t5x


def test_periods_in_a_row_end_a_run():
  action = actions.StopWhenDiverged(max_periods=2)
  state = types.SimpleNamespace(step=np.array(7))

  def run(loss, of='train'):
    return action.run(state, {of: {'loss': values.Scalar(loss)}})

  assert [run(x) for x in (np.nan, 1.0, np.inf, np.nan)] == [
      False, False, False, True
  ]
  assert run(1.0, of='a_task')  # It does not take that back.
  assert not run(1.0) and not run(np.nan, of='a_task')


def test_one_action_is_asked_whenever_t5x_asks():
  asked = actions.stop_when_diverged()
  assert asked.keys() == {'TRAIN', 'TRAIN_EVAL', 'INFER_EVAL'}
  assert len({id(action) for (action,) in asked.values()}) == 1


@pytest.mark.slow
def test_t5x_ends_a_run_that_diverges(tmp_path):
  state = training.train(
      networks.adapted('molora', more=networks.FEW_SITES),
      tmp_path,
      INITIAL_CHECKPOINT_PATH=[],
      NUM_EXPERTS=2,
      RANK=2,
      Z_LOSS=1e38,  # No loss is finite.
      TRAIN_STEPS=6,
      CHECKPOINT_PERIOD=1,
  )
  assert state.step == 3
