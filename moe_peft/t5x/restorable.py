# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether what T5X is about to restore is the model's.

Orbax reads an array of another shape as far as both go, and T5X does not look:
a run would go on with parts of its adapters.
"""

from collections.abc import Mapping
import re
from typing import Any

from absl import logging
from etils import epath  # Paths on a disk or in a bucket.
from t5x import checkpoints as t5x_checkpoints

from moe_peft import errors
from moe_peft.core import trainable
from moe_peft.runs import run_lock
from moe_peft.t5x import notes
from moe_peft.t5x import settings
from moe_peft.training import bases
from moe_peft.training import tensor_files

# Parts of a state, what a checkpoint holds where they differ, and what to do.
_PARTS = (
    ('target/', 'parameters of another method or size',
     'Give the method file and the sizes, such as NUM_EXPERTS and RANK, that '
     'they were trained with (config.gin of the run has them)'),
    ('state/param_states/', 'the state of another optimizer',
     'Give the OPTIMIZER, and the method file, of the run (config.gin has '
     'them)'),
)


def check(state: Mapping[str, Any]) -> None:
  """Checks the checkpoint that the gin files of this process lead to.

  Only what T5X surely reads is looked at: not the newest one of a folder, and
  of what is transformed on the way no more than that it is there.

  Args:
    state: State dictionary of T5X's train state, of shapes.

  Raises:
    errors.UserError: If it is none, or of another model, method or optimizer,
      or if there is nothing left to train.
  """
  if (evaluated := settings.of_script('restore_checkpoint_cfg')) is not None:
    _check_evaluated(evaluated, state)
    return
  config, model_dir = map(settings.of_script, ('checkpoint_cfg', 'model_dir'))
  # T5X has made it by now; a plan has none.
  if not model_dir or not epath.Path(model_dir).is_dir():
    return
  restored = getattr(config, 'restore', None)
  if steps := t5x_checkpoints.all_steps(model_dir):
    _check_resumed(model_dir, steps[-1], state, restored)
  elif (epath.Path(model_dir) / run_lock.FILE).exists():
    raise errors.UserError(
        f'{model_dir} holds a run of python -m moe_peft.train, and T5X cannot '
        'go on with it.', 'MODEL_DIR', 'Choose another folder.',
    )
  elif _is_checkpoint(epath.Path(model_dir)):
    raise errors.UserError(
        f'{model_dir} is a checkpoint, in which a run would begin anew.',
        'MODEL_DIR', 'To go on with its run, give the folder that it is in.',
    )
  elif not getattr(restored, 'path', None):
    _warn_of_no_base(state)
  elif _is_specific(restored):
    check_base(
        restored.path,
        _read(restored, state),
        _name(restored.path, 'INITIAL_CHECKPOINT_PATH'),
    )


def _warn_of_no_base(state: Mapping[str, Any]) -> None:
  """Says that what is frozen is random, which trials of speed may mean."""
  trains = trainable.matcher(
      settings.macro('TRAINABLE_REGEX', trainable.ADAPTER_REGEX)
  )
  if all(map(trains, trainable.flatten(state['target']))):
    return
  logging.warning(
      'INITIAL_CHECKPOINT_PATH names no base: adapters are trained on random '
      'parameters.%s',
      ' They are saved without these, so nothing can be done with them.'
      if settings.saves_adapters() else '',
  )


def _check_evaluated(restored: Any, state: Mapping[str, Any]) -> None:
  """Checks what `t5x.eval` or `t5x.infer` reads."""
  if not _is_specific(restored):
    return
  where = _name(restored.path, 'CHECKPOINT_PATH')
  _check_is_checkpoint(restored.path, where)
  if _has_adapters_alone(restored.path):  # Of which the base is read too.
    return
  if restored.fallback_to_scratch:  # Its adapters may be fresh.
    check_base(restored.path, _read(restored, state), where)
  elif not _is_transformed(restored):
    check_state(restored.path, {'target': state['target']}, where)
    notes.check_whole(restored.path, resumes=False)


def _is_specific(restored: Any) -> bool:
  return restored.mode == 'specific' and isinstance(restored.path, str)


def _is_transformed(restored: Any) -> bool:
  """Whether T5X gives what it reads other names or shapes."""
  renames = any(new is not None for _, new in restored.assignment_map or ())
  by_map = 1 if restored.assignment_map is not None else 0
  return renames or len(restored.state_transformation_fns) > by_map


def _read(restored: Any, state: Mapping[str, Any]) -> dict[str, Any]:
  """Flat parameters that T5X reads under their own names, as far as known."""
  if _is_transformed(restored):
    return {}
  fresh = [x for x, _ in restored.assignment_map or ()]
  return {
      name: x
      for name, x in trainable.flatten(state['target']).items()
      if not any(re.fullmatch(x, f'target/{name}') for x in fresh)
  }


def _name(path: str, macro: str) -> str:
  """What the user calls a path that is restored."""
  same = settings.macro(macro) == path
  return macro if same else 'utils.RestoreCheckpointConfig.path'


def _check_resumed(
    model_dir: str, step: int, state: Mapping[str, Any], restored: Any
) -> None:
  """Checks the newest checkpoint of a run that goes on."""
  path = epath.Path(model_dir) / f'checkpoint_{step}'
  total = settings.of_script('total_steps')
  if total is not None and total < step:
    raise errors.UserError(
        f'The run in {model_dir} is at step {step} already, and TRAIN_STEPS = '
        f'{total}.', 'TRAIN_STEPS', 'Raise it, or choose another MODEL_DIR.',
    )
  if not _has_adapters_alone(path):
    if not _is_checkpoint(path):
      raise errors.UserError(
          f'{path} holds no checkpoint.', 'MODEL_DIR',
          'Move it away: the run goes on from the one before.',
      )
    if restored is None or not _is_transformed(restored):
      check_state(path, state, 'MODEL_DIR')
      notes.check_whole(path, resumes=True)
  elif not settings.saves_adapters():
    raise errors.UserError(
        f'{path} holds adapters alone, and T5X by itself needs everything.',
        where='MODEL_DIR',
        remedy='Include gin/runs/t5x_adapter_checkpoints.gin, or choose '
        'another folder.',
    )


def check_base(
    path: str,
    expected: Mapping[str, Any],
    where: str = 'INITIAL_CHECKPOINT_PATH',
) -> None:
  """Checks that a path is that of a base of the model.

  Args:
    path: A T5X checkpoint. Of one in T5X's older format, which is only read
      whole, no shapes are looked at.
    expected: Shapes by path of the parameters that the model needs; if none,
      the checkpoint only has to be there. Those of adapters may be absent.
    where: What the user calls it.

  Raises:
    errors.UserError: If there is none, or if it is of another model.
  """
  _check_is_checkpoint(path, where)
  if _has_adapters_alone(path):
    raise errors.UserError(
        f'{path} holds the adapters of a run, and not their base.', where,
        'Give the base; to go on with that run, give its MODEL_DIR.',
    )
  if expected and (shapes := _shapes(path)):
    bases.check_shapes(path, _under('target/', shapes), expected, where)


def check_state(
    path: Any,
    state: Mapping[str, Any],
    where: str = 'CHECKPOINT_PATH or MODEL_DIR',
) -> None:
  """Checks that a checkpoint of a run holds a state of these shapes.

  Args:
    path: Folder `checkpoint_<step>`. Of one in T5X's older format no shapes are
      looked at.
    state: What is restored of T5X's state dictionary: `target`, and where a run
      goes on, `state`.
    where: What the user calls it.

  Raises:
    errors.UserError: If it holds another.
  """
  saved = _shapes(path)
  if not saved:
    return
  expected = {
      name: x.shape
      for name, x in trainable.flatten(state).items()
      if hasattr(x, 'shape')  # T5X's MultiOptimizer has None in some places.
  }
  for root, what, remedy in _PARTS:
    of_model = _under(root, expected)
    problems = tensor_files.misfits(_under(root, saved), of_model)
    if of_model and problems:
      raise errors.UserError(
          f'{path} holds {what} ({problems}).', where,
          f'{remedy}, or train in another MODEL_DIR.',
      )


def _under(root: str, shapes: Mapping[str, Any]) -> dict[str, Any]:
  return {
      name.removeprefix(root): shape
      for name, shape in shapes.items()
      if name.startswith(root)
  }


def _check_is_checkpoint(path: str, where: str) -> None:
  folder = epath.Path(path)
  with errors.refused(  # Of a bucket.
      f'{path} cannot be read.', where,
      'Check the network and the credentials of this machine.',
  ):
    is_there = folder.exists()
  if not is_there:
    raise errors.UserError(
        f'{path} does not exist.', where, _nearest(folder.parent)
    )
  if not _is_checkpoint(folder):
    raise errors.UserError(
        f'{path} is no checkpoint of T5X.', where, _nearest(folder)
    )


def _is_checkpoint(folder: epath.Path) -> bool:
  # The file is that of T5X's older format.
  return bool(re.fullmatch(r'checkpoint_\d+', folder.name)) and any(
      (folder / name).exists() for name in ('state', 'checkpoint')
  )


def _nearest(folder: epath.Path) -> str:
  """The newest checkpoint in a folder, or else what writes one."""
  if steps := t5x_checkpoints.all_steps(str(folder)):
    return f'Did you mean {folder / f"checkpoint_{steps[-1]}"}?'
  return (
      'python -m moe_peft hf import writes one of a model of Hugging Face, and '
      'python -m moe_peft save_base --t5x of a run.'
  )


def _has_adapters_alone(path: Any) -> bool:
  return (epath.Path(path) / 'base').is_dir()


def _shapes(path: Any) -> dict[str, tuple[int, ...]]:
  """Shapes by path of what a checkpoint holds; none in T5X's older format."""
  if not (folder := epath.Path(path) / 'state').is_dir():
    return {}
  flat = trainable.flatten(bases.orbax_metadata(folder))
  return {k: tuple(x.shape) for k, x in flat.items() if hasattr(x, 'shape')}
