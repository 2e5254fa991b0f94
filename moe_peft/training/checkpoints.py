# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of what training changes.

A checkpoint holds the trainable parameters, the optimizer state, the step, the
position in the data, the identity of the base, the loop's notes (what the data
are, the sums of the log's next row) and a checksum of every file. The base
stays where it is.
"""

from collections.abc import Iterator, Mapping
import contextlib
import json
from pathlib import Path
import re
from typing import Any

from clu.data import dataset_iterator
import orbax.checkpoint as ocp

from moe_peft import errors
from moe_peft.training import base_identity
from moe_peft.training import checksums


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
      # '... from checkpoint: FILE; No such file or directory. ...', or in its
      # place 'Iterator::Root::...', a step that reads rows otherwise.
      file = message.partition('checkpoint: ')[2].partition(';')[0]
      if file.startswith('Iterator::'):
        raise errors.UserError(
            f'The run {directory.parent} read its rows in other steps, and '
            'cannot be continued in these.',
            where='PACKING',
            remedy='Put back what it was, or, if it is the same, what else '
            'says how tasks read rows; or choose another MODEL_DIR.',
        ) from error
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


def _is_same(key: str, one: Any, other: Any) -> bool:
  """Whether a part of an identity has not changed."""
  if key == 'base':
    return base_identity.is_same(one or {}, other or {})
  return one == other


def _change(name: str, one: Any, other: Any) -> str:
  """What has changed; of objects the first of their values that has."""
  if isinstance(one, Mapping) and isinstance(other, Mapping):
    key = min(k for k in one.keys() | other if one.get(k) != other.get(k))
    place = f' of {other["path"]}' if key != 'path' and 'path' in other else ''
    return _change(f'{key}{place}', one.get(key), other.get(key))
  return f'{name} was {one} and now is {other}'


class Checkpointer:
  """Asynchronous checkpoints of one run.

  A checkpoint becomes visible when it is whole; what was saved before stays
  until then. Opening them finds the newest whole one; a damaged one is never
  deleted, and moves aside when a new one is saved.

  Attributes:
    damaged: The file that tells, by step, for those that are newer.
  """

  def __init__(
      self, run_dir: Path, keep: int, identity: Mapping[str, Any],
      alone: bool = False,
  ):
    """Opens the checkpoints of a run.

    Args:
      run_dir: The folder of the run.
      keep: Number of newest checkpoints kept.
      identity: What must be equal for a run to be continued, as JSON; of
        'base' all but the path.
      alone: Whether no other process can be saving: then what killed ones
        have left half written is removed.

    Raises:
      errors.UserError: If the folder cannot be written, or holds checkpoints
        of another experiment, or damaged ones only.
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
        options=ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, cleanup_tmp_directories=alone
        ),
        item_handlers={
            'state': ocp.StandardCheckpointHandler(),
            'data': _IteratorHandler(),
            'identity': ocp.JsonCheckpointHandler(),
            'notes': ocp.JsonCheckpointHandler(),
            checksums.ITEM: checksums.Handler(),  # The last one.
        },
    )
    self.damaged = self._find_damaged()
    self._check_identity(run_dir)

  def _find_damaged(self) -> dict[int, Path]:
    """The damaged checkpoints that are newer than the newest whole one."""
    damaged = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      file = checksums.damaged_file(self._folder / str(step))
      if file is None:
        return damaged
      damaged[step] = file
    if damaged:
      file = next(iter(damaged.values()))
      raise self._damage(file, 'The file has changed or cannot be read.')
    return damaged

  def _damage(self, where: Path, what: str) -> errors.UserError:
    return errors.UserError(
        f'The checkpoint is damaged: {what}', where=where,
        remedy='Put it back from a copy; to train anew, choose another '
        'MODEL_DIR.',
    )

  def _check_identity(self, run_dir: Path) -> None:
    step = self.latest_step()
    if step is None:
      return
    saved = self._json(step, 'identity')
    different = sorted(
        key for key in saved.keys() | self._identity.keys()
        if not _is_same(key, saved.get(key), self._identity.get(key))
    )
    if different:
      key = different[0]
      change = _change(key, saved.get(key), self._identity.get(key))
      raise errors.UserError(
          f'{run_dir} holds another experiment; it differs in '
          f'{", ".join(different)} ({change}).',
          where='MODEL_DIR',
          remedy='Choose another folder, or remove this one.',
      )

  def latest_step(self) -> int | None:
    """Step of the newest whole checkpoint, or None."""
    steps = self._manager.all_steps()
    return max((x for x in steps if x not in self.damaged), default=None)

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
           data: dataset_iterator.DatasetIterator,
           notes: Mapping[str, Any] | None = None) -> None:
    """Starts to save; errors of the save before are raised here.

    Args:
      step: The step.
      state: The state after it.
      data: The iterator whose position is saved.
      notes: JSON that `restore_notes` returns.
    """
    with _disk_errors(self._folder):
      if self.damaged:
        self._move_damaged()
      self._manager.save(
          step,
          args=ocp.args.Composite(
              state=ocp.args.StandardSave(state),
              data=_IteratorArgs(data),
              identity=ocp.args.JsonSave(self._identity),
              notes=ocp.args.JsonSave(dict(notes or {})),
              **{checksums.ITEM: checksums.Args()},
          ),
      )

  def _move_damaged(self) -> None:
    """Makes place for new checkpoints of the same steps."""
    for step in self.damaged:
      checksums.move_aside(self._folder / str(step))
    self.damaged = {}
    self._manager.reload()

  def restore(self, step: int, state: Any,
              data: dataset_iterator.DatasetIterator | None = None) -> Any:
    """Restores a state of the given shapes and shardings.

    Args:
      step: Which checkpoint.
      state: A state, or its shapes with shardings.
      data: The iterator to move to the saved position, or None.

    Raises:
      errors.UserError: If the checkpoint is damaged or of another optimizer,
        or the files that `data` was reading are no longer there.
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
      said = str(error).strip() or type(error).__name__
      first_line = said.partition('\n')[0]
      if 'tree structures do not match' in first_line:
        # The parameters are those of the identity.
        raise errors.UserError(
            f'The run {self._folder.parent} has the state of another '
            'optimizer, and cannot be continued with this one.',
            where='experiment.Experiment.optimizer',
            remedy='Put back what it was, or choose another MODEL_DIR.',
        ) from error
      raise self._damage(self._folder / str(step), first_line) from error

  def restore_notes(self, step: int) -> dict[str, Any]:
    """What was saved as `notes`; empty for checkpoints of older versions."""
    if not (self._folder / str(step) / 'notes').exists():
      return {}
    notes = self._json(step, 'notes')
    if wrong := [x for x in notes.values() if not isinstance(x, dict | None)]:
      raise self._damage(
          self._folder / str(step) / 'notes', f'{wrong[0]!r:.60} is no object.'
      )
    return notes

  def _json(self, step: int, item: str) -> dict[str, Any]:
    """An item of JSON; checkpoints of older versions have no checksums."""
    args = ocp.args.Composite(**{item: ocp.args.JsonRestore()})
    try:
      found = self._manager.restore(step, args=args)[item]
    except (OSError, ValueError, LookupError, RecursionError) as error:
      found = error
    if not isinstance(found, dict):
      raise self._damage(
          self._folder / str(step) / item,
          f'It is no JSON object ({found!s:.200}).',
      )
    return found

  def wait(self) -> None:
    """Waits until everything is on disk."""
    with _disk_errors(self._folder):
      self._manager.wait_until_finished()
      self._manager.check_for_errors()

  def close(self) -> None:
    """Closes them, when what is being saved is on disk.

    Raises:
      errors.UserError: The disk takes no more: another write may have failed
        first and ended the run before `wait`.
    """
    with _disk_errors(self._folder):
      self._manager.close()


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
  """Turns a failed write into a user error; older checkpoints remain."""
  try:
    yield
  except errors.UserError:
    raise
  except Exception as error:  # Orbax, tensorstore and TensorFlow have kinds.
    # Without the names that TensorFlow has for its functions.
    text = re.sub(r'\{\{.*?\}\}|\[Op:.*?\]', '', str(error))
    text = ' '.join(text.split())
    raise errors.UserError(
        f'The checkpoint cannot be saved: {text[:300].rstrip(" .")}.',
        where=folder,
        remedy='Free some space and run the same command again; it continues '
        'from the last checkpoint that was saved whole.',
    ) from error
