# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""T5X's first use of a model, its initial variables."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from t5x import utils


class AdapterStateInitializer(utils.TrainStateInitializer):
  """T5X's, for networks that take token ids of the type that they are of."""

  def __init__(
      self,
      optimizer_def: Any,
      init_fn: Any,
      input_shapes: Mapping[str, Any],
      partitioner: Any,
      input_types: Mapping[str, Any] | None = None,
  ):
    """As `t5x.utils.TrainStateInitializer`, but for one default.

    Args:
      optimizer_def: T5X optimizer; None to evaluate.
      init_fn: Method `get_initial_variables` of a T5X model.
      input_shapes: Shapes of the model's features.
      partitioner: T5X partitioner.
      input_types: Types of the model's features; by default int32. T5X's
        default is float32, which its own networks cast and others refuse.
    """
    input_types = input_types or dict.fromkeys(input_shapes, jnp.int32)
    super().__init__(
        optimizer_def, init_fn, input_shapes, partitioner, input_types
    )
