# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""T5X's first use of a model, its initial variables."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from t5x import utils

from moe_peft import errors
from moe_peft.core import partitioning
from moe_peft.core import trainable
from moe_peft.t5x import layout
from moe_peft.t5x import restorable
from moe_peft.t5x import settings
from moe_peft.training import memory


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

    Raises:
      errors.UserError: If the network cannot be built, if the mesh cannot
        split a microbatch, if a device has no room for its part of the state,
        or if what T5X is about to restore is not the model's.
    """
    input_types = input_types or dict.fromkeys(input_shapes, jnp.int32)
    with errors.refused(
        'The network that the gin files describe cannot be built.', 'MODEL'
    ):
      super().__init__(
          optimizer_def, init_fn, input_shapes, partitioner, input_types
      )
    if optimizer_def is not None:
      rows, *_ = next(iter(input_shapes.values()))
      _check_microbatches(rows, partitioner.mesh)
    # Devices that a plan names are absent, and tell no memory.
    if getattr(partitioner, 'devices', None) is None:
      self._check_memory(partitioner.mesh)
      restorable.check(self.global_train_state_shape.state_dict())

  def _check_memory(self, mesh: Any) -> None:
    """Refuses a state that one device surely has no room for.

    All devices of a CPU share the host's memory, which only the part of one is
    compared with. Files of evaluations have no BASE_DTYPE, so for them the base
    counts as in bfloat16, whatever it is read in.
    """
    dtype = jnp.dtype(settings.macro('BASE_DTYPE', 'bfloat16'))
    state = layout.restored(
        self.global_train_state_shape,
        settings.macro('TRAINABLE_REGEX', trainable.ADAPTER_REGEX),
        dtype,
    )
    needed = memory.num_bytes_of_device(
        layout.lay_out(state, self.train_state_axes, mesh)
    )
    there = memory.of_devices(mesh.local_devices[:1])
    if needed > there:
      narrower = "set BASE_DTYPE = 'bfloat16', " if dtype.itemsize > 2 else ''
      raise errors.UserError(
          "A device's part of the parameters, and in training of the "
          f"optimizer's state, takes {memory.gib(needed)}, and it has "
          f'{memory.gib(there)} of memory.',
          where='NUM_MODEL_PARTITIONS',
          remedy=f'Raise it, {narrower}or take a smaller base or smaller '
          'adapters.',
      )


def _check_microbatches(rows: int, mesh: Any) -> None:
  """Raises errors.UserError if a mesh cannot split a part of a batch."""
  if parts := settings.argument('t5x.trainer.Trainer', 'num_microbatches'):
    partitioning.check_batch_size(
        rows // parts, mesh, 'BATCH_SIZE / NUM_MICROBATCHES'
    )
