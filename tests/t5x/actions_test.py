# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""T5X runs that diverge end."""

import types

from clu import values
import numpy as np
import pytest

pytest.importorskip('t5x')
actions = pytest.importorskip('moe_peft.t5x.actions')
pytestmark = pytest.mark.t5x


def test_periods_in_a_row_end_a_run():
  action = actions.StopWhenDiverged(max_periods=2)
  state = types.SimpleNamespace(step=np.array(7))

  def run(loss):
    return action.run(state, {'train': {'loss': values.Scalar(loss)}})

  assert [run(x) for x in (np.nan, 1.0, np.inf, np.nan)] == [
      False, False, False, True
  ]
