# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Learning rate schedules; for others, bind one of optax.schedules."""

import optax

from moe_peft import errors


def warmup_cosine(
    peak_value: float, warmup_steps: int, train_steps: int
) -> optax.Schedule:
  """Rises linearly from zero, then falls to zero along a cosine.

  Args:
    peak_value: Learning rate after the warm-up.
    warmup_steps: Steps of the rise.
    train_steps: Steps in all.

  Raises:
    errors.UserError: If there are no steps, or if the warm-up does not end
      before the training does.
  """
  if train_steps < 1:
    raise errors.UserError(f'{train_steps} is less than 1.', 'TRAIN_STEPS')
  if not 0 <= warmup_steps < train_steps:
    raise errors.UserError(
        f'{warmup_steps} is negative or not less than TRAIN_STEPS = '
        f'{train_steps}.',
        where='WARMUP_STEPS',
    )
  return optax.schedules.warmup_cosine_decay_schedule(
      0.0, peak_value, warmup_steps, train_steps
  )
