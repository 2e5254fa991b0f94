# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes an Orbax checkpoint, holding one parameter at a time in memory.

Orbax's own handler of arrays copies all of them and buffers them again: four
times the size of a model. What is written is an ordinary checkpoint.
"""

from collections.abc import Callable, Mapping
import dataclasses
from pathlib import Path

from absl import logging
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import type_handlers

from moe_peft.core import trainable
from moe_peft.training import checkpoints


@dataclasses.dataclass(frozen=True)
class Parameter:
  """A parameter that is read when it is written.

  Attributes:
    shape: Its shape.
    dtype: Its dtype.
    read: Returns it.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]

  @property
  def ndim(self) -> int:
    return len(self.shape)

  @property
  def size(self) -> int:
    return int(np.prod(self.shape))

  @property
  def nbytes(self) -> int:
    return self.size * self.dtype.itemsize


class _ParameterHandler(type_handlers.NumpyHandler):
  """Writes parameters one after the other."""

  def __init__(self):
    super().__init__(deepcopy_host_arrays=False)

  async def serialize(self, values, infos, args=None):
    args = args or [ocp.SaveArgs()] * len(values)
    for value, info, arg in zip(values, infos, args, strict=True):
      array = np.ascontiguousarray(value.read(), dtype=value.dtype)
      for future in await super().serialize([array], [info], [arg]):
        future.result()
    return []


def write(folder: Path, params: Mapping[str, Parameter]) -> None:
  """Writes `checkpoint_0/state`, the parameters of a T5X train state.

  Args:
    folder: A base's folder.
    params: Flat parameters.
  """
  registry = type_handlers.create_type_handler_registry(
      (Parameter, _ParameterHandler()),
      (jax.Array, type_handlers.ArrayHandler()),
  )
  # OCDBT would gather everything in memory before it writes.
  handler = ocp.PyTreeCheckpointHandler(
      use_ocdbt=False, type_handler_registry=registry
  )
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    target = folder.absolute() / checkpoints.T5X_BASE
    target.parent.mkdir()
    with ocp.Checkpointer(handler) as checkpointer:
      checkpointer.save(
          target,
          args=ocp.args.PyTreeSave({'target': trainable.unflatten(params)}),
      )
  finally:
    logging.set_verbosity(verbosity)
