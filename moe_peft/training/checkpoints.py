# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Bases that are read, and checkpoints of what training changes.

A checkpoint holds the trainable parameters, the optimizer state, the step, the
position in the data and the identity of the base. The base stays where it is.
"""

from collections.abc import Iterator, Mapping
import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from clu.data import dataset_iterator
import jax
import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
import numpy as np
import orbax.checkpoint as ocp
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from moe_peft import errors
from moe_peft import gin_files
from moe_peft.core import trainable

Params = Mapping[str, Any]

BASE_FILE = 'model.safetensors'
# Where a base holds its parameters so that T5X restores them too, from
# `checkpoint_0`.
T5X_BASE = 'checkpoint_0/state'
# Bytes of each array that enter the fingerprint: the first and last of them.
SAMPLE_BYTES = 4096
_ORBAX_FILES = ('_METADATA', '_CHECKPOINT_METADATA')


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
      raise errors.UserError(
          f'INITIAL_CHECKPOINT_PATH = {path} does not exist.'
      ) from error
  params = _read_arrays(folder)
  check_shapes(folder, params, expected)
  return {name: params[name] for name in expected if name in params}


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
  file = path / BASE_FILE if path.is_dir() else path
  if file.is_file():
    try:
      return safetensors_numpy.load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
      raise errors.UserError(
          f'{file} is not a readable safetensors file ({error}); it may be '
          'truncated. Fetch or write it again.'
      ) from error
  for folder in (path / T5X_BASE, path / 'state', path):
    # Either file, as versions of Orbax differ.
    if not any((folder / name).exists() for name in _ORBAX_FILES):
      continue
    restored = read_orbax(folder)
    for name in ('target', 'params'):
      restored = restored.get(name, restored)
    return trainable.flatten(restored)
  raise errors.UserError(
      f'{path} holds no base: expected {BASE_FILE} or an Orbax checkpoint.'
  )


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
        f'{folder} is not a readable Orbax checkpoint: {error}'
    ) from error


def check_shapes(path: Any, params: Params, expected: Params) -> None:
  """Raises errors.UserError if a base is of another model.

  Args:
    path: Where it lies.
    params: What it holds: anything with a `shape`, by path.
    expected: Shapes by path of the parameters that the model needs. Those of
      adapters may be absent.
  """
  missing = sorted(
      k for k in set(expected) - set(params) if not trainable.is_adapter(k)
  )
  unused = sorted(
      k for k in set(params) - set(expected) if not trainable.is_adapter(k)
  )
  wrong = [
      f'{name} is {params[name].shape} there and '
      f'{tuple(expected[name].shape)} in the model'
      for name in sorted(set(expected) & set(params))
      if params[name].shape != tuple(expected[name].shape)
  ]
  problems = []
  for title, names in (
      ('missing', missing), ('not in the model', unused), ('shapes', wrong)
  ):
    if names:
      more = f' and {len(names) - 3} more' if len(names) > 3 else ''
      problems.append(f'{title}: {", ".join(names[:3])}{more}')
  if problems:
    raise errors.UserError(
        f'The base {path} is of another model ({"; ".join(problems)}). Use '
        'the file under gin/models/ that belongs to it.'
    )


def fingerprint(path: str | None, base: Params) -> dict[str, Any]:
  """Identity of a base.

  Args:
    path: Where it was read from.
    base: `{path: array}`.

  Returns:
    `path`, number of `parameters`, and `sha256` over the sorted names, shapes
    and dtypes and the first and last `SAMPLE_BYTES` bytes of each array.
  """
  digest = hashlib.sha256()
  for name in sorted(base):
    array = np.ascontiguousarray(base[name])
    digest.update(f'{name} {array.shape} {array.dtype}\n'.encode())
    data = array.reshape(-1).view(np.uint8)
    digest.update(data[:SAMPLE_BYTES].tobytes())
    digest.update(data[-SAMPLE_BYTES:].tobytes())
  return {
      'path': path,
      'parameters': trainable.num_params(base),
      'sha256': digest.hexdigest() if base else None,
  }


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


class _IteratorHandler(ocp.CheckpointHandler):
  """Saves the position of a CLU dataset iterator beside the arrays."""

  def save(self, directory, args):
    args.iterator.save(directory / 'iterator')

  def restore(self, directory, args):
    import tensorflow as tf  # Loaded by now: the iterator is TensorFlow's.

    try:
      args.iterator.restore(directory / 'iterator')
    except tf.errors.NotFoundError as error:
      message = str(error)
      if 'Failed to restore dataset iterator' not in message:
        raise  # A file of the checkpoint itself.
      # '... from checkpoint: FILE; No such file or directory. ...'
      file = message.partition('checkpoint: ')[2].partition(';')[0]
      raise errors.UserError(
          f'{directory.parent} cannot be continued without the data that it '
          f'was reading: {file} is not there. Put it back, or a link to it, '
          'and give the same path as then.'
      ) from error
    return args.iterator


@ocp.args.register_with_handler(
    _IteratorHandler, for_save=True, for_restore=True
)
class _IteratorArgs(ocp.args.CheckpointArgs):

  def __init__(self, iterator: dataset_iterator.DatasetIterator):
    self.iterator = iterator


def _without_path(identity: Mapping[str, Any]) -> dict[str, Any]:
  """An identity with its base told by values alone: the folder may move."""
  base = identity.get('base') or {}
  return {**identity, 'base': {k: v for k, v in base.items() if k != 'path'}}


class Checkpointer:
  """Asynchronous checkpoints of one run.

  A checkpoint becomes visible when it is whole; what was saved before stays
  until then.
  """

  def __init__(self, run_dir: Path, keep: int, identity: Mapping[str, Any]):
    """Opens the checkpoints of a run.

    Args:
      run_dir: The folder of the run.
      keep: Number of newest checkpoints kept.
      identity: What must be equal for a run to be continued, as JSON; of
        'base' all but the path.

    Raises:
      errors.UserError: If the folder cannot be written, or holds checkpoints
        of another experiment.
    """
    self._folder = run_dir.absolute() / 'checkpoints'
    self._identity = json.loads(json.dumps(identity))
    try:
      self._folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise errors.UserError(
          f'MODEL_DIR = {run_dir} cannot be written ({error.strerror}); '
          'choose another folder.'
      ) from error
    self._manager = ocp.CheckpointManager(
        self._folder,
        options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        item_names=('state', 'data', 'identity'),
    )
    self._check_identity(run_dir)

  def _check_identity(self, run_dir: Path) -> None:
    step = self._manager.latest_step()
    if step is None:
      return
    saved = self._manager.restore(
        step, args=ocp.args.Composite(identity=ocp.args.JsonRestore())
    )['identity']
    then, now = _without_path(saved), _without_path(self._identity)
    different = sorted(
        key for key in then.keys() | now.keys() if then.get(key) != now.get(key)
    )
    if different:
      key = different[0]
      raise errors.UserError(
          f'MODEL_DIR = {run_dir} holds another experiment: it differs in '
          f'{", ".join(different)} ({key} was {saved.get(key)}, now is '
          f'{self._identity.get(key)}). Choose another MODEL_DIR, or remove '
          'that folder.'
      )

  def latest_step(self) -> int | None:
    """Step of the newest whole checkpoint, or None."""
    return self._manager.latest_step()

  def require_step(self) -> int:
    """Step of the newest whole checkpoint, or a UserError."""
    step = self.latest_step()
    if step is None:
      raise errors.UserError(
          f'{self._folder} holds no checkpoint yet; train first.'
      )
    return step

  def save(self, step: int, state: Any,
           data: dataset_iterator.DatasetIterator) -> None:
    """Starts to save; errors of the save before are raised here."""
    with _disk_errors(self._folder):
      self._manager.save(
          step,
          args=ocp.args.Composite(
              state=ocp.args.StandardSave(state),
              data=_IteratorArgs(data),
              identity=ocp.args.JsonSave(self._identity),
          ),
      )

  def restore(self, step: int, state: Any,
              data: dataset_iterator.DatasetIterator | None = None) -> Any:
    """Restores a state of the given shapes and shardings.

    Args:
      step: Which checkpoint.
      state: A state, or its shapes with shardings.
      data: The iterator to move to the saved position, or None.

    Raises:
      errors.UserError: If the checkpoint is damaged, or the files that `data`
        was reading are no longer there.
    """
    args = {'state': ocp.args.StandardRestore(state)}
    if data is not None:
      args['data'] = _IteratorArgs(data)
    try:
      return self._manager.restore(
          step, args=ocp.args.Composite(**args)
      )['state']
    except errors.UserError:
      raise
    except Exception as error:  # Orbax and tensorstore raise many kinds.
      first_line = str(error).strip().splitlines()[0]
      raise errors.UserError(
          f'The checkpoint {self._folder / str(step)} is damaged or of another '
          f'experiment ({first_line}). Remove that folder to continue from '
          'the checkpoint before it.'
      ) from error

  def wait(self) -> None:
    """Waits until everything is on disk."""
    with _disk_errors(self._folder):
      self._manager.wait_until_finished()
      self._manager.check_for_errors()

  def close(self) -> None:
    self._manager.close()


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
  """Turns a failed write into a user error; older checkpoints remain."""
  try:
    yield
  except errors.UserError:
    raise
  except Exception as error:  # Orbax, tensorstore and TensorFlow have kinds.
    text = ' '.join(str(error).split())
    raise errors.UserError(
        f'The checkpoint could not be saved in {folder}: {text[:300]} Free '
        'some space and run the same command again; it continues from the '
        'last checkpoint that was saved whole.'
    ) from error


def abstract_state(state: Any) -> Any:
  """Shapes, dtypes and shardings of a state, to restore into."""
  return jax.tree.map(ocp.utils.to_shape_dtype_struct, state)


