# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of what training changes.

A checkpoint holds the trainable parameters, the optimizer state, the step, the
position in the data and the identity of the base. The base stays where it is.
"""

from collections.abc import Iterator, Mapping
import contextlib
import json
from pathlib import Path
from typing import Any

from clu.data import dataset_iterator
import orbax.checkpoint as ocp

from moe_peft import errors


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
          f'The run {directory.parent} was reading this file, and cannot be '
          'continued without it.',
          where=file,
          remedy='Put it, or a link to it, back where it was.',
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
          f'{run_dir} cannot be written: {error.strerror}.',
          where='MODEL_DIR',
          remedy='Choose another folder.',
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
          f'{run_dir} holds another experiment; it differs in '
          f'{", ".join(different)} ({key} was {saved.get(key)} and now is '
          f'{self._identity.get(key)}).',
          where='MODEL_DIR',
          remedy='Choose another folder, or remove this one.',
      )

  def latest_step(self) -> int | None:
    """Step of the newest whole checkpoint, or None."""
    return self._manager.latest_step()

  def require_step(self) -> int:
    """Step of the newest whole checkpoint, or a UserError."""
    step = self.latest_step()
    if step is None:
      raise errors.UserError(
          'The run has no checkpoint yet.',
          where=self._folder,
          remedy='Train it first.',
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
          f'The checkpoint is damaged or of another experiment: {first_line}',
          where=self._folder / str(step),
          remedy='Remove the folder to continue from the checkpoint before it.',
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
        f'The checkpoint cannot be saved: {text[:300]}',
        where=folder,
        remedy='Free some space and run the same command again; it continues '
        'from the last checkpoint that was saved whole.',
    ) from error
