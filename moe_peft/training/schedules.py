# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Learning rate schedules; for others, bind one of optax.schedules."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from moe_peft import errors
from moe_peft.core import inject
from moe_peft.core import sites

# What most methods take for alpha, and what full fine-tuning is compared with.
_ALPHA = 16.0
# The width of a small model, for networks that do not tell theirs.
_WIDTH = 576


def warmup_cosine(
    peak_value: float, warmup_steps: int | None, train_steps: int
) -> optax.Schedule:
  """Rises linearly from zero, then falls to zero along a cosine.

  Args:
    peak_value: Learning rate after the warm-up.
    warmup_steps: Steps of the rise; None: 6 % of all, but at least 5 and at
      most 100 of them, and never more than a quarter of all (ours).
    train_steps: Steps in all; 0 scores the model as it is.

  Raises:
    errors.UserError: For a negative number of steps, or if the warm-up does
      not end before the training does.
  """
  if train_steps < 0:
    raise errors.UserError(f'{train_steps} is less than 0.', 'TRAIN_STEPS')
  if train_steps == 0:
    return optax.constant_schedule(0.0)
  if warmup_steps is None:
    share = min(max(round(0.06 * train_steps), 5), 100)
    warmup_steps = min(share, train_steps // 4)
  if not 0 <= warmup_steps < train_steps:
    raise errors.UserError(
        f'{warmup_steps} is negative or not less than TRAIN_STEPS = '
        f'{train_steps}.',
        where='WARMUP_STEPS',
    )
  return optax.schedules.warmup_cosine_decay_schedule(
      0.0, peak_value, warmup_steps, train_steps
  )


def describe(schedule: optax.Schedule, train_steps: int) -> str:
  """A line on a schedule: the highest rate, and the first step that has it."""
  if train_steps == 0:
    return 'Nothing is trained (TRAIN_STEPS = 0): the model is scored as it is.'
  rates = jax.vmap(schedule)(jnp.arange(train_steps))
  return (
      f'{train_steps} steps; the learning rate peaks at {rates.max():.2g}, at '
      f'step {rates.argmax()}.'
  )


def suggested_rate(module: inject.AdaptedModule, share: float = 1.0) -> float:
  """A peak rate of Adam for a method on a base; a start, not a tuned value.

  `1 / (10 sqrt(0.8 alpha width))`, to one digit. Adam moves every number by
  about the rate, so after so many agreeing steps an update of LoRA has the size
  of what it is added to, whatever its rank and its number of experts (ours;
  docs/methods.md has what it gives). A method with a `peak_rate` of its own has
  that. Full fine-tuning takes a tenth of LoRA's.

  Args:
    module: The adapted network.
    share: Factor, for losses that need less.
  """
  config = getattr(module.module, 'config', None)
  width = getattr(config, 'emb_dim', _WIDTH)
  # Some methods look at the depth of the layer they are made for.
  site = sites.Site(layer=0, num_layers=2**10)
  rates = [
      _rate(rule.adapter_factory(site=site, name='adapter'), width)
      for rule in module.rules
  ]
  rate = min(rates, default=_closed_form(_ALPHA, width) / 10)
  return share * float(f'{rate:.0e}')


def _rate(adapter: Any, width: int) -> float:
  if (own := getattr(adapter, 'peak_rate', None)) is not None:
    return own
  # Without a factor before it, an update is added as it is.
  return _closed_form(getattr(adapter, 'alpha', 1.0), width)


def _closed_form(alpha: float, width: int) -> float:
  return 1 / (10 * math.sqrt(0.8 * alpha * width))
