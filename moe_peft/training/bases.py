# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pretrained bases: how they are read, checked and written."""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import os
from pathlib import Path
import re
from typing import Any

from absl import logging
import jax
import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
import numpy as np
import orbax.checkpoint as ocp

from moe_peft import errors
from moe_peft import gin_files
from moe_peft.core import trainable
from moe_peft.training import tensor_files

Params = Mapping[str, Any]

BASE_FILE = 'model.safetensors'
# Where a base holds its parameters so that T5X restores them too, from
# `checkpoint_0`.
T5X_BASE = 'checkpoint_0/state'
_ORBAX_FILES = ('_METADATA', '_CHECKPOINT_METADATA')
_BINDING = 'INITIAL_CHECKPOINT_PATH'


def load_base(path: str, expected: Params) -> tensor_files.LazyArrays:
  """Reads the parameters of a pretrained model.

  Args:
    path: A folder with `model.safetensors` (keys are parameter paths), such a
      file, an Orbax checkpoint, a T5X checkpoint written by Orbax, or a folder
      with one of step 0; looked for as given, then among the files that ship
      with moe_peft.
    expected: Shapes by path of the parameters that the model needs. Those of
      adapters may be absent.

  Returns:
    The expected paths that are there; each array is read when it is asked for.

  Raises:
    errors.UserError: If nothing readable lies there, or if the checkpoint is
      of another model.
  """
  folder = find(path)
  arrays = read_arrays(folder)
  check_shapes(folder, arrays.shapes, expected)
  return arrays.only(expected)


def find(path: str, where: str = _BINDING) -> Path:
  """Where a base lies: as given, or among the files that ship with moe_peft.

  Args:
    path: The path.
    where: What the user calls it.

  Raises:
    errors.UserError: If nothing lies there.
  """
  folder = Path(path).expanduser()
  if folder.exists():
    return folder
  try:
    return gin_files.resource(path)
  except errors.UserError as error:
    raise _missing(path, where) from error


def read_arrays(path: Path) -> tensor_files.LazyArrays:
  """The parameters of a base, as `load_base` finds them in a folder.

  Raises:
    errors.UserError: If nothing readable lies there.
  """
  file = path / BASE_FILE if path.is_dir() else path
  if file.is_file():
    files = tensor_files.TensorFiles([file])
    return tensor_files.LazyArrays(files.shapes, files.__getitem__)
  for folder in (path / T5X_BASE, path / 'state', path):
    # Either file, as versions of Orbax differ.
    if any((folder / name).exists() for name in _ORBAX_FILES):
      return _orbax_arrays(folder)
  raise errors.UserError(
      f'This is no base; {BASE_FILE} or an Orbax checkpoint is expected.',
      where=path,
  )


def _params(tree: Mapping[str, Any]) -> dict[str, Any]:
  """The flat parameters in an Orbax tree, ours or that of a T5X state."""
  for name in ('target', 'params'):
    tree = tree.get(name, tree)
  return trainable.flatten(tree)


def _orbax_arrays(folder: Path) -> tensor_files.LazyArrays:
  """The parameters in an Orbax tree, each read by itself."""
  tree = orbax_metadata(folder)
  # As in `_params`, but with the whole path as the value.
  paths = jax.tree_util.tree_map_with_path(lambda path, _: path, tree)
  paths, leaves = _params(paths), _params(tree)

  def read(name):
    item = leaves[name]
    for key in reversed(paths[name]):
      item = {getattr(key, 'key', getattr(key, 'name', None)): item}
    return jax.tree.leaves(read_orbax(folder, item))[0]

  return tensor_files.LazyArrays(
      {name: tuple(leaf.shape) for name, leaf in leaves.items()}, read
  )


def orbax_metadata(folder: Any) -> dict[str, Any]:
  """What an Orbax tree says of its arrays, such as their shapes.

  Args:
    folder: Where it lies, on a disk or in a bucket.

  Raises:
    errors.UserError: If it is not readable.
  """
  with _readable(folder), ocp.PyTreeCheckpointer() as checkpointer:
    found = checkpointer.metadata(folder.absolute()).item_metadata
    if found is None:  # So Orbax says that the file is absent or damaged.
      raise ValueError(f'{_ORBAX_FILES[0]} is absent or damaged')
    return found.tree


def read_orbax(folder: Path, part: Any = None) -> dict[str, Any]:
  """Reads an Orbax tree as NumPy arrays, on whatever devices it was saved.

  Args:
    folder: Where it lies.
    part: A part of the tree that the checkpoint's metadata holds; by default
      the whole.

  Raises:
    errors.UserError: If it is not readable.
  """
  tree = orbax_metadata(folder) if part is None else part
  as_numpy = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
  )
  with _readable(folder), ocp.PyTreeCheckpointer() as checkpointer:
    return checkpointer.restore(
        folder.absolute(),
        args=ocp.args.PyTreeRestore(
            tree, restore_args=as_numpy, partial_restore=True
        ),
    )


@contextlib.contextmanager
def _readable(folder: Any) -> Iterator[None]:
  """Refuses an Orbax checkpoint that is damaged."""
  try:
    yield
  except (ValueError, OSError, KeyError) as error:
    raise errors.UserError(
        f'The Orbax checkpoint is not readable: {error}', where=folder
    ) from error


def check_shapes(
    path: Any,
    shapes: tensor_files.Shapes,
    expected: Params,
    where: str = _BINDING,
) -> None:
  """Checks that a base is of the model.

  Args:
    path: Where it lies.
    shapes: What it holds.
    expected: Shapes by path of the parameters that the model needs. Those of
      adapters may be absent.
    where: What the user calls it.

  Raises:
    errors.UserError: If it is of another model, or holds adapters alone.
  """
  problems = tensor_files.misfits(
      shapes,
      {name: array.shape for name, array in expected.items()},
      trainable.is_adapter,
  )
  if problems:
    if shapes and all(map(trainable.is_adapter, shapes)):
      raise errors.UserError(
          f'{path} holds the adapters of a run, and not their base.', where,
          'Give the base; to go on with that run, give its MODEL_DIR.',
      )
    remedy = 'Use the file under gin/models/ that belongs to it.'
    one_by_one = any('/layers_0/' in name for name in shapes)
    if one_by_one != any('/layers_0/' in name for name in expected):
      remedy += f' Or is it for SCAN_LAYERS = {not one_by_one}?'
    raise errors.UserError(
        f'{path} is of another model ({problems}).', where, remedy
    )


def check_given(
    path: str | None, missing: Iterable[str], trained: Iterable[str]
) -> None:
  """Checks that experts that do not train come with the base.

  Args:
    path: Where it lies; None: there is none.
    missing: Parameters that it does not hold.
    trained: Parameters that train.

  Raises:
    errors.UserError: If the base lacks what does not train, or cannot.
  """
  update, column = (
      re.compile(x).fullmatch
      for x in (trainable.UPDATE_REGEX, trainable.COLUMN_REGEX)
  )
  updates_train = any(map(update, trained))
  lost = next(
      (x for x in missing if column(x) or (update(x) and not updates_train)),
      None,
  )
  if lost and path is not None:
    raise errors.UserError(
        f'The base does not hold {lost}, and nothing that trains makes it more '
        'than zero.',
        where=_BINDING,
        remedy='Give a bank (python -m moe_peft bank build) and its bank.gin '
        'as the last gin file; gates come with experts that '
        'gin/methods/phatgoose.gin has trained, centroids with those of '
        'gin/methods/retrieval.gin.',
    )


def _missing(path: str, where: str = _BINDING) -> errors.UserError:
  return errors.UserError(
      f'{path} does not exist.', where=where,
      remedy='Give the path of a base, such as python -m moe_peft hf import '
      'writes.',
  )


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
    tensor_files.write(folder / BASE_FILE, arrays)
    return (folder / BASE_FILE).absolute()
  return write_t5x(arrays, folder)


def write_t5x(params: Params, folder: Path) -> Path:
  """Writes flat parameters as they are, and returns `checkpoint_0`."""
  state = (folder / T5X_BASE).absolute()
  with writing(), ocp.PyTreeCheckpointer() as checkpointer:
    checkpointer.save(state, {'target': trainable.unflatten(params)})
  return state.parent


@contextlib.contextmanager
def writing() -> Iterator[None]:
  """Makes an OSError of what Orbax raises, and logs, where a disk refuses."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.FATAL)
  try:
    yield
  except (errors.UserError, OSError):
    raise
  except (ValueError, RuntimeError) as error:
    # So tensorstore tells what the system said; the rest is no disk's fault.
    code = re.search(r"\[os_error_code='?(\d+)", str(error))
    if code is None:
      raise
    raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
  finally:
    logging.set_verbosity(verbosity)


def t5x_checkpoint(path: str) -> Path | None:
  """The T5X checkpoint that a base is or holds, or None.

  Raises:
    errors.UserError: If nothing lies there.
  """
  folder = find(path)
  found = (folder / Path(T5X_BASE).parent, folder)
  return next((x for x in found if (x / 'state').is_dir()), None)
