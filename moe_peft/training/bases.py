# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pretrained bases: how they are read, checked, told apart and written."""

from collections.abc import Mapping
import hashlib
from pathlib import Path
from typing import Any

from etils import epath  # Paths on a disk or in a bucket.
import jax
import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
import numpy as np
import orbax.checkpoint as ocp
from safetensors import numpy as safetensors_numpy

from moe_peft import errors
from moe_peft import gin_files
from moe_peft.core import trainable
from moe_peft.training import tensor_files

Params = Mapping[str, Any]

BASE_FILE = 'model.safetensors'
# Where a base holds its parameters so that T5X restores them too, from
# `checkpoint_0`.
T5X_BASE = 'checkpoint_0/state'
# Bytes of each array that enter the fingerprint: the first and last of them.
SAMPLE_BYTES = 4096
_ORBAX_FILES = ('_METADATA', '_CHECKPOINT_METADATA')
_BINDING = 'INITIAL_CHECKPOINT_PATH'


def load_base(path: str, expected: Params) -> dict[str, np.ndarray]:
  """Reads the parameters of a pretrained model.

  Args:
    path: A folder with `model.safetensors` (keys are parameter paths), such a
      file, an Orbax checkpoint, a T5X checkpoint written by Orbax, or a folder
      with one of step 0; looked for as given, then among the files that ship
      with moe_peft.
    expected: Shapes by path of the parameters that the model needs. Those of
      adapters may be absent.

  Returns:
    `{path: array}`, the expected paths.

  Raises:
    errors.UserError: If nothing readable lies there, or if the checkpoint is
      of another model.
  """
  folder = Path(path).expanduser()
  if not folder.exists():
    try:
      folder = gin_files.resource(path)
    except errors.UserError as error:
      raise _missing(path) from error
  params = read_arrays(folder)
  check_shapes(folder, params, expected)
  return {name: params[name] for name in expected if name in params}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
  """Reads all parameters of a base, as `load_base` finds them in a folder.

  Raises:
    errors.UserError: If nothing readable lies there.
  """
  file = path / BASE_FILE if path.is_dir() else path
  if file.is_file():
    return dict(tensor_files.TensorFiles([file]))
  for folder in (path / T5X_BASE, path / 'state', path):
    # Either file, as versions of Orbax differ.
    if any((folder / name).exists() for name in _ORBAX_FILES):
      return _params(read_orbax(folder))
  raise errors.UserError(
      f'This is no base; {BASE_FILE} or an Orbax checkpoint is expected.',
      where=path,
  )


def _params(tree: Mapping[str, Any]) -> dict[str, Any]:
  """The flat parameters in an Orbax tree, ours or that of a T5X state."""
  for name in ('target', 'params'):
    tree = tree.get(name, tree)
  return trainable.flatten(tree)


def read_orbax(folder: Path) -> dict[str, Any]:
  """Reads an Orbax tree as NumPy arrays, on whatever devices it was saved.

  Args:
    folder: Where it lies.

  Raises:
    errors.UserError: If it is not readable.
  """
  try:
    with ocp.PyTreeCheckpointer() as checkpointer:
      tree = checkpointer.metadata(folder.absolute()).item_metadata.tree
      as_numpy = jax.tree.map(
          lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
      )
      return checkpointer.restore(folder.absolute(), restore_args=as_numpy)
  except (ValueError, OSError, KeyError) as error:
    raise errors.UserError(
        f'The Orbax checkpoint is not readable: {error}', where=folder
    ) from error


def check_t5x_checkpoint(path: str, expected: Params) -> None:
  """Says what T5X would find out late, and in many lines.

  Args:
    path: A T5X checkpoint. One of T5X's older format, which is only read whole,
      need but exist.
    expected: As of `check_shapes`.

  Raises:
    errors.UserError: If there is none, or if it is of another model.
  """
  if not epath.Path(path).exists():
    raise _missing(path)
  state = epath.Path(path) / 'state'
  if state.is_dir():
    with ocp.PyTreeCheckpointer() as checkpointer:
      tree = checkpointer.metadata(state).item_metadata.tree
    check_shapes(path, _params(tree), expected)


def check_shapes(path: Any, params: Params, expected: Params) -> None:
  """Checks that a base is of the model.

  Args:
    path: Where it lies.
    params: What it holds: anything with a `shape`, by path.
    expected: Shapes by path of the parameters that the model needs. Those of
      adapters may be absent.

  Raises:
    errors.UserError: If it is of another model.
  """
  problems = tensor_files.misfits(
      {name: array.shape for name, array in params.items()},
      {name: array.shape for name, array in expected.items()},
      trainable.is_adapter,
  )
  if problems:
    raise errors.UserError(
        f'{path} is of another model ({problems}).',
        where=_BINDING,
        remedy='Use the file under gin/models/ that belongs to it.',
    )


def _missing(path: str) -> errors.UserError:
  return errors.UserError(f'{path} does not exist.', where=_BINDING)


def identity(
    path: str | None, params: Params, mesh: jax.sharding.Mesh | None = None
) -> dict[str, Any]:
  """What tells a base from another one.

  Args:
    path: Where it was read from.
    params: `{path: array}`, on the host, or on the devices of `mesh`. Then all
      processes must call this, only samples are fetched, and all get the same.
    mesh: The devices.

  Returns:
    `path`, number of `parameters`, and `sha256` over the sorted names, shapes
    and types and the first and last `SAMPLE_BYTES` bytes of each array; None
    without parameters.
  """
  samples = _samples
  if mesh is not None:
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    samples = jax.jit(_samples, out_shardings=everywhere)
  ends = jax.device_get(samples(dict(params)))
  digest = hashlib.sha256()
  for name, array in sorted(params.items()):
    digest.update(f'{name} {array.shape} {array.dtype}\n'.encode())
    for end in ends[name]:
      digest.update(np.ascontiguousarray(end).tobytes())
  return {
      'path': path,
      'parameters': trainable.num_params(params),
      'sha256': digest.hexdigest() if params else None,
  }


def _samples(params: Params) -> dict[str, tuple[Any, Any]]:
  return {name: (_end(x, 1), _end(x, -1)) for name, x in params.items()}


def _end(x: Any, side: int) -> Any:
  """The first (side 1) or last (-1) `SAMPLE_BYTES` bytes of an array.

  Only a few rows are flattened, since a whole array may be sharded.
  """
  count = SAMPLE_BYTES // x.dtype.itemsize
  if x.size <= count:
    return x.reshape(-1)
  rows = -(-count // (x.size // x.shape[0]))
  part = x[:rows] if side > 0 else x[-rows:]
  if part.shape != x.shape and rows == 1:
    return _end(part[0], side)
  part = part.reshape(-1)
  return part[:count] if side > 0 else part[-count:]


def save_base(params: Params, folder: Path) -> Path:
  """Writes parameters, rounded to bfloat16, as a base.

  Returns:
    The file written.
  """
  folder.mkdir(parents=True, exist_ok=True)
  file = folder / BASE_FILE
  arrays = {
      name: np.asarray(value).astype(ml_dtypes.bfloat16)
      for name, value in sorted(params.items())
  }
  safetensors_numpy.save_file(arrays, file)
  return file
