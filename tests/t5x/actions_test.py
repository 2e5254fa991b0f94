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
optimizer = pytest.importorskip('moe_peft.t5x.optimizer')
pytestmark = pytest.mark.t5x


@pytest.mark.parametrize(
    ('before', 'after', 'gradient', 'skipped'),
    [
        ([0.0, None], [1.0, None], 1.0, 0.0),
        ([1.0, None], [1.0, None], 1.0, 1.0),
        ([1.0, None], [1.0, None], np.nan, 1.0),
        ([1.0, None], [1.0, None], 0.0, 0.0),  # Taken, and it moves nothing.
        ([], [], np.nan, 0.0),  # No state tells.
    ],
)
def test_a_skipped_step_is_told_by_the_state(before, after, gradient, skipped):
  old, new = (
      types.SimpleNamespace(param_states=[x and np.array(x) for x in states])
      for states in (before, after)
  )
  found = optimizer.SkippedSteps().compute_metrics(
      {'a': np.array([gradient])}, old, new
  )
  assert found['skipped'].total == skipped


def test_periods_in_a_row_end_a_run():
  asked = actions.stop_when_diverged(max_periods=2)
  state = types.SimpleNamespace(step=np.array(7))

  def run(loss, **more):
    (action,) = asked['TRAIN']
    found = {'loss': loss, **more}
    return action.run(
        state, {'train': {k: values.Scalar(x) for k, x in found.items()}}
    )

  def after_evaluation():
    # A task may have any name, and metrics of its own.
    metrics = {'train': {'accuracy': values.Scalar(np.nan)}}
    answers = {
        asked[mode][0].run(state, metrics)
        for mode in ('TRAIN_EVAL', 'INFER_EVAL')
    }
    (answer,) = answers
    return answer

  assert [run(x) for x in (np.nan, 1.0, np.inf, np.nan)] == [
      False, False, False, True
  ]
  assert after_evaluation()  # It does not take that back.
  assert not run(1.0) and not after_evaluation()
  # The loss of what stays is finite.
  shares = (1.0, 0.9, 1.0, 1.0)
  assert [run(2.0, skipped=x) for x in shares] == [False, False, False, True]


@pytest.mark.slow
@pytest.mark.parametrize(('macros', 'step'), [
    ({'Z_LOSS': 1e38}, 3),  # No loss is finite.
    # Losses stay those of the base. The first step has the rate 0.
    ({'LEARNING_RATE': 1e38, 'WARMUP_STEPS': 1}, 4),
])
def test_t5x_ends_a_run_that_diverges(tmp_path, macros, step):
  state = training.train(
      networks.adapted('molora', more=networks.FEW_SITES),
      tmp_path,
      INITIAL_CHECKPOINT_PATH=[],
      NUM_EXPERTS=2,
      RANK=2,
      TRAIN_STEPS=6,
      CHECKPOINT_PERIOD=1,
      **macros,
  )
  assert state.step == step
