# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Arrays that are read when they are written: one is in memory at a time.

Orbax's own handler of arrays copies all of them and buffers them again: four
times the size of a model. The writer of safetensors wants all of them at once.
What is written here are ordinary files of both formats.
"""

from collections.abc import Callable, Mapping
import dataclasses
import json
from pathlib import Path
import struct
from typing import Any

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import type_handlers

from moe_peft.core import trainable
from moe_peft.training import bases

_SAFETENSORS_NAMES = {
    np.dtype(np.float32): 'F32',
    np.dtype(ml_dtypes.bfloat16): 'BF16',
}


@dataclasses.dataclass(frozen=True)
class LazyArray:
  """An array that is read when it is written.

  Attributes:
    shape: Its shape.
    read: Returns it, perhaps in another type.
    dtype: The type in which it is written.
  """

  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]
  dtype: np.dtype = np.dtype(np.float32)

  @property
  def ndim(self) -> int:
    return len(self.shape)

  @property
  def size(self) -> int:
    return int(np.prod(self.shape))

  @property
  def nbytes(self) -> int:
    return self.size * self.dtype.itemsize

  def load(self) -> np.ndarray:
    """Returns the array as it is written."""
    array = np.asarray(self.read(), self.dtype, order='C')
    if array.shape != tuple(self.shape):
      raise ValueError(f'an array is {array.shape}, not {self.shape}')
    return array


def of(array: np.ndarray) -> LazyArray:
  """An array that is there already, to be written in float32."""
  return LazyArray(array.shape, lambda: array)


def write_safetensors(file: Path, arrays: Mapping[str, LazyArray]) -> None:
  """Writes a safetensors file."""
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  offset = 0
  for name, array in arrays.items():
    header[name] = {
        'dtype': _SAFETENSORS_NAMES[array.dtype],
        'shape': list(array.shape),
        'data_offsets': [offset, offset + array.nbytes],
    }
    offset += array.nbytes
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)  # The data must be aligned.
  with file.open('wb') as stream:
    stream.write(struct.pack('<Q', len(text)) + text)
    for array in arrays.values():
      stream.write(array.load().reshape(-1).view(np.uint8).data)


class _LazyArrayHandler(type_handlers.NumpyHandler):
  """Writes arrays one after the other."""

  def __init__(self):
    super().__init__(deepcopy_host_arrays=False)

  async def serialize(self, values, infos, args=None):
    args = args or [ocp.SaveArgs()] * len(values)
    for value, info, arg in zip(values, infos, args, strict=True):
      for future in await super().serialize([value.load()], [info], [arg]):
        future.result()
    return []


def write_orbax(folder: Path, params: Mapping[str, LazyArray]) -> None:
  """Writes `checkpoint_0/state`, the parameters of a T5X train state.

  They are flat here, and `folder` is that of a base.
  """
  registry = type_handlers.create_type_handler_registry(
      (LazyArray, _LazyArrayHandler()),
      (jax.Array, type_handlers.ArrayHandler()),
  )
  # OCDBT would gather everything in memory before it writes.
  handler = ocp.PyTreeCheckpointHandler(
      use_ocdbt=False, type_handler_registry=registry
  )
  target = folder.absolute() / bases.T5X_BASE
  target.parent.mkdir()
  with bases.writing(), ocp.Checkpointer(handler) as checkpointer:
    tree = {'target': trainable.unflatten(params)}
    checkpointer.save(target, args=ocp.args.PyTreeSave(tree))
