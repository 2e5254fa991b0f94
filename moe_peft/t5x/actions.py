# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What T5X does after each of its statistics periods: looks for divergence.

T5X asks actions where `concurrent_metrics` is False, and after an evaluation
again, whose answer takes the place of the one before.

T5X saves a run that ends in its last epoch (from one save or evaluation to
another) twice at one step. `AdapterCheckpointer` leaves out the second; of
whole checkpoints Orbax raises `StepAlreadyExistsError`, and the first is there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging
import numpy as np
from t5x import trainer

_TRAINING = 'train'  # T5X's name of what it trains on.


def stop_when_diverged(
    max_periods: int = 3,
) -> Mapping[str, Sequence[trainer.BaseAction]]:
  """The actions of a run that ends when it has diverged.

  Args:
    max_periods: As of `StopWhenDiverged`.

  Returns:
    One action that looks, and one that repeats its answer after evaluations.
  """
  looks = StopWhenDiverged(max_periods)
  repeats = _Repeat(looks)
  return {
      mode.name: (looks if mode is trainer.ActionMode.TRAIN else repeats,)
      for mode in trainer.ActionMode
  }


class StopWhenDiverged(trainer.BaseAction):
  """Ends a run that does not come back to finite numbers.

  The optimizers of this package skip the steps that are not finite, so the last
  checkpoint is a good one, and T5X saves no worse one when it ends.
  """

  def __init__(self, max_periods: int = 3):
    """Makes the action.

    Args:
      max_periods: So many of T5X's `stats_period` in a row, each of them with a
        loss that is not finite or without a step that is, end the run.
    """
    self._max_periods = max_periods
    self._periods = 0

  @property
  def has_diverged(self) -> bool:
    """Whether enough periods in a row were not finite."""
    return self._periods >= self._max_periods

  def run(
      self, train_state: Any, metrics_by_task: Mapping[str, Mapping[str, Any]]
  ) -> bool:
    """Whether training ends; T5X calls this on the first host only."""
    metrics = metrics_by_task[_TRAINING]
    finite = np.all(np.isfinite(metrics['loss'].value))
    if 'skipped' in metrics:  # As `optimizer.SkippedSteps` logs it.
      finite &= np.all(metrics['skipped'].value < 1)
    self._periods = 0 if finite else self._periods + 1
    if not self.has_diverged:
      return False
    logging.error(
        'The loss, its gradient or the parameters are not finite in %d periods '
        'in a row, up to step %d, and the run ends. Steps that were not finite '
        'have changed nothing. Make LEARNING_RATE smaller, or WARMUP_STEPS '
        'larger.',
        self._periods, int(np.asarray(train_state.step)),
    )
    return True


class _Repeat(trainer.BaseAction):
  """Says after an evaluation what training has said before it."""

  def __init__(self, looks: StopWhenDiverged):
    self._looks = looks

  def run(
      self, train_state: Any, metrics_by_task: Mapping[str, Mapping[str, Any]]
  ) -> bool:
    """Whether training ends, whatever the evaluation has found."""
    return self._looks.has_diverged
