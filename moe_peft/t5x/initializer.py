# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The first use that T5X's scripts make of a model: its shapes."""

from collections.abc import Mapping
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
from t5x import utils

from moe_peft.core import trainable
from moe_peft.training import budget


class AdapterStateInitializer(utils.TrainStateInitializer):
  """T5X's, which first chooses the size that keeps to PARAM_BUDGET."""

  def __init__(
      self,
      optimizer_def: Any,
      init_fn: Any,
      input_shapes: Mapping[str, Any],
      partitioner: Any,
      input_types: Mapping[str, Any] | None = None,
      *,
      param_budget: float | None = None,
      budget_macro: str | None = None,
      trainable_regex: str = trainable.ADAPTER_REGEX,
  ):
    """As `t5x.utils.TrainStateInitializer`, and:

    Args:
      optimizer_def: T5X optimizer; None to evaluate.
      init_fn: Method `get_initial_variables` of a T5X model.
      input_shapes: Shapes of the model's features.
      partitioner: T5X partitioner.
      input_types: Types of the model's features; by default token ids. T5X
        says float32 then, which its own networks cast and others refuse.
      param_budget: Most parameters to train, see budget.py, or None.
      budget_macro: Macro whose value the budget decides.
      trainable_regex: Which parameters train.

    Raises:
      errors.UserError: If no size keeps to the budget.
    """
    input_types = input_types or {name: jnp.int32 for name in input_shapes}
    if param_budget is not None:
      choice = budget.apply(
          param_budget,
          lambda: init_fn(
              rng=jax.random.key(0),
              input_shapes=input_shapes,
              input_types=input_types,
          )['params'],
          trainable_regex,
          budget_macro,
      )
      logging.info('%s', choice)
    super().__init__(
        optimizer_def, init_fn, input_shapes, partitioner, input_types
    )
