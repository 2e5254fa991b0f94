# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pretrained bases: how they are read, checked, told apart and written."""

from collections.abc import Mapping
import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

from etils import epath  # Paths on a disk or in a bucket.
import jax
import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
import numpy as np
import orbax.checkpoint as ocp
from safetensors import numpy as safetensors_numpy

from moe_peft import atomic
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
  folder = find(path)
  params = read_arrays(folder)
  check_shapes(folder, params, expected)
  return {name: params[name] for name in expected if name in params}


def find(path: str) -> Path:
  """Where a base lies: as given, or among the files that ship with moe_peft.

  Raises:
    errors.UserError: If nothing lies there.
  """
  folder = Path(path).expanduser()
  if folder.exists():
    return folder
  try:
    return gin_files.resource(path)
  except errors.UserError as error:
    raise _missing(path) from error


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
    without parameters. On the host also `content`, SHA-256 over all bytes.
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
  sampled = digest.hexdigest() if params else None
  found = {
      'path': path,
      'parameters': trainable.num_params(params),
      'sha256': sampled,
  }
  if mesh is None and params:
    found['content'] = _content(path, params, sampled)
  return found


def is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
  """Whether two identities are of one base; its folder may have moved.

  Older runs do not know the `content`.
  """
  ignored = {'path'} | ({'content'} & (one.keys() ^ other.keys()))
  known = lambda x: {k: v for k, v in x.items() if k not in ignored}
  return known(one) == known(other)


def _content(path: str | None, params: Params, sampled: str) -> str:
  """SHA-256 over all bytes.

  The bytes are hashed once: the result is remembered by the path of the base,
  the sizes and times of its files and the samples.
  """
  if not path:
    return _sha256(params)
  root = find(path)
  files = [root] if root.is_file() else sorted(root.rglob('*'))
  states = [(str(file.absolute()), file.stat()) for file in files]
  key = hashlib.sha256(repr([
      sampled, *((name, x.st_size, x.st_mtime_ns) for name, x in states)
  ]).encode()).hexdigest()
  cache = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache'))
  remembered = cache / 'moe_peft' / 'bases' / key
  with contextlib.suppress(OSError):
    return remembered.read_text()
  content = _sha256(params)
  with contextlib.suppress(OSError):
    remembered.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(remembered, content)
  return content


def _sha256(params: Params) -> str:
  digest = hashlib.sha256()
  for name, array in sorted(params.items()):
    digest.update(f'{name} {array.shape} {array.dtype}\n'.encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
  return digest.hexdigest()


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


def save_base(params: Params, folder: Path, t5x: bool = False) -> Path:
  """Writes parameters, rounded to bfloat16, as a base.

  Args:
    params: Flat parameters.
    folder: A folder, made if it is not there.
    t5x: Whether to write `checkpoint_0`, which T5X restores too, instead of
      `model.safetensors`.

  Returns:
    The file or folder written, as INITIAL_CHECKPOINT_PATH names it.
  """
  folder.mkdir(parents=True, exist_ok=True)
  arrays = {
      name: np.asarray(value).astype(ml_dtypes.bfloat16)
      for name, value in sorted(params.items())
  }
  if not t5x:
    safetensors_numpy.save_file(arrays, folder / BASE_FILE)
    return (folder / BASE_FILE).absolute()
  return write_t5x(arrays, folder)


def write_t5x(params: Params, folder: Path) -> Path:
  """Writes flat parameters as they are, and returns `checkpoint_0`."""
  state = (folder / T5X_BASE).absolute()
  with ocp.PyTreeCheckpointer() as checkpointer:
    checkpointer.save(state, {'target': trainable.unflatten(params)})
  return state.parent


def t5x_checkpoint(path: str) -> Path | None:
  """The T5X checkpoint that a base is or holds, or None.

  Raises:
    errors.UserError: If nothing lies there.
  """
  folder = find(path)
  found = (folder / Path(T5X_BASE).parent, folder)
  return next((x for x in found if (x / 'state').is_dir()), None)
