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
    errors.UserError: If the warm-up does not end before the training does.
  """
  if not 0 <= warmup_steps < train_steps:
    raise errors.UserError(
        f'WARMUP_STEPS = {warmup_steps} must be less than TRAIN_STEPS = '
        f'{train_steps}, and not negative.'
    )
  return optax.schedules.warmup_cosine_decay_schedule(
      0.0, peak_value, warmup_steps, train_steps
  )
