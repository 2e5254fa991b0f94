# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs of T5X, read to be scored, asked and exported; T5X need not be there.

Their adapters go into the model that gin files of the embedded engine describe,
over the same base.
"""

from collections.abc import Mapping
from pathlib import Path
import sys
from typing import Any

import jax
import numpy as np

from moe_peft import errors
from moe_peft.core import quantized
from moe_peft.core import trainable
from moe_peft.runs import json_file
from moe_peft.runs import t5x_run
from moe_peft.training import base_identity
from moe_peft.training import bases
from moe_peft.training import checksums
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import method_settings
from moe_peft.training import tensor_files

_BASE = 'INITIAL_CHECKPOINT_PATH'


class T5XCheckpoints:
  """What `checkpoints.Checkpointer` is for reading.

  Attributes:
    damaged: A damaged file of each checkpoint newer than the newest whole one.
  """

  def __init__(self, setup: experiment_lib.Setup):
    """Finds the newest whole checkpoint.

    Args:
      setup: The experiment that T5X has trained.

    Raises:
      errors.UserError: If all are damaged.
    """
    self._setup = setup
    self._folders = t5x_run.checkpoints(setup.experiment.run_dir)
    self.damaged: dict[int, Path] = {}
    for step in sorted(self._folders, reverse=True):
      file = checksums.damaged_file(self._folders[step])
      if file is None:
        return
      self.damaged[step] = file
    raise errors.UserError(
        'The checkpoint is damaged: the file has changed or cannot be read.',
        next(iter(self.damaged.values())), 'Put it back from a copy.',
    )

  def latest_step(self) -> int:
    """Step of the newest whole checkpoint."""
    return max(self._folders.keys() - self.damaged.keys())

  require_step = latest_step

  def restore(self, step: int, state: Any) -> Any:
    """Reads what T5X has trained.

    Args:
      step: Which checkpoint.
      state: A train state, or its shapes with shardings.

    Returns:
      The state with its parameters, and with those of frozen adapters that the
      checkpoint has; the optimizer's part is as it is given.

    Raises:
      errors.UserError: If it is of another model, method, size or base.
    """
    folder, setup = self._folders[step], self._setup
    arrays = bases.read_arrays(folder)
    has_base = not (folder / 'base').is_dir()  # Else a note of it.
    drawn = {  # Frozen adapters; those of a bank come with the base.
        k: x for k, x in setup.frozen.items()
        if trainable.is_adapter(k) and (has_base or k in arrays)
    }
    base = {k: x for k, x in setup.frozen.items() if k not in drawn}
    expected = {**state.params, **drawn}
    self._check_shapes(
        folder, arrays.shapes, expected | (base if has_base else {})
    )
    self._check_method(folder)
    self._check_base(folder, arrays if has_base else None, base)
    return state.replace(params={
        name: jax.device_put(arrays[name].astype(x.dtype), x.sharding)
        for name, x in expected.items()
    })

  def close(self) -> None:
    """There is nothing to close."""

  def _check_shapes(
      self,
      folder: Path,
      shapes: tensor_files.Shapes,
      expected: Mapping[str, Any],
  ) -> None:
    """Refuses another size, and a base that T5X cannot have trained on."""
    if problems := tensor_files.misfits(
        shapes, {name: x.shape for name, x in expected.items()}
    ):
      raise errors.UserError(
          f'{folder} is of another model, method or size ({problems}).',
          '--gin_file', 'Give the experiment that T5X has trained.',
      )
    for name, x in self._setup.frozen.items():
      if isinstance(x, quantized.QuantizedArray):
        raise errors.UserError(
            f'{name} is quantized, and T5X trains over floats.', 'BASE_DTYPE',
            'Set it to float32 or bfloat16.',
        )

  def _check_method(self, folder: Path) -> None:
    if self._setup.experiment.allow_changed_method:
      return
    file = folder / 'method' / 'metadata'
    if file.exists():
      method = {'method': _fields(file).value}
      then = json_file.Fields(file, method).mapping('method', str)
    else:  # Whole, or of an older version.
      then = method_settings.of_t5x_run(folder.parent)
    change = method_settings.change_of_adapters(then)
    if change is not None:
      raise errors.UserError(
          f'It is not the method that {folder} was trained with: {change}.',
          '--gin_file', 'Give the experiment that T5X has trained, or add '
          '--gin.ALLOW_CHANGED_METHOD=True.',
      )

  def _check_base(
      self,
      folder: Path,
      arrays: tensor_files.LazyArrays | None,
      base: Mapping[str, Any],
  ) -> None:
    """Refuses another base; None of arrays where there is a note of it."""
    if arrays is not None:
      other = next((k for k in base if not _equal(arrays[k], base[k])), None)
      if other is not None:
        raise self._other_base(folder, f'{other} differs')
      return
    saved = _fields(folder / 'base' / 'metadata')
    if saved.value.get('version') != base_identity.VERSION:
      print(f'warning: {base_identity.OLDER}', file=sys.stderr)
    if not any(
        base_identity.is_noted(
            saved.value,
            base_identity.of(None, base, self._setup.mesh, dtype),
        )
        for dtype in ('float32', 'bfloat16')  # That of the base under T5X.
    ):
      raise self._other_base(
          folder, f'that is {saved.get("path", str, "without a path")}'
      )

  def _other_base(self, folder: Path, why: str) -> errors.UserError:
    path = self._setup.experiment.initial_checkpoint_path
    return errors.UserError(
        f'{path} is not the base on which {folder} was trained ({why}).',
        _BASE, 'Give the path of that base. Checkpoints of adapters of older '
        'versions lack what T5X draws and does not train.',
    )


def _fields(file: Path) -> json_file.Fields:
  try:
    return json_file.Fields(file, json_file.loads(json_file.read_text(file)))
  except (OSError, ValueError) as error:
    raise json_file.damaged(file, f'It cannot be read ({error}).') from error


def _equal(array: np.ndarray, on_device: jax.Array) -> bool:
  """Whether arrays are equal in the type of the first one."""
  return np.array_equal(array, jax.device_get(on_device).astype(array.dtype))
