# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A run of `t5x.train`, for `plan --t5x` and `aot --t5x`.

Nothing of it runs: it is the objects that gin gives to `t5x.train`, and the
step that T5X's trainer makes of them, on devices that need not exist.
"""

from collections.abc import Iterator, Sequence
import contextlib
import copy
import importlib
from pathlib import Path
import sys
import tempfile
from typing import Any

import gin
import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft import gin_files as gin_files_lib
from moe_peft.core import trainable
from moe_peft.data import converters
from moe_peft.t5x import layout
from moe_peft.t5x import settings
from moe_peft.training import step_program
from moe_peft.training import subject as subject_lib


def load(
    gin_files: Sequence[str],
    bindings: Sequence[str],
    search_paths: str,
    trust: bool = False,
) -> None:
  """Parses gin files of `t5x.train`.

  Args:
    gin_files: As of `gin_files.load_gin`.
    bindings: The same.
    search_paths: The same.
    trust: The same.

  Raises:
    errors.UserError: If T5X is missing, or for wrong files and bindings.
  """
  unused = str(Path(tempfile.gettempdir()) / 'unused')
  paths = dict.fromkeys(('MODEL_DIR', 'INITIAL_CHECKPOINT_PATH'), unused)
  with _script_as_main():
    gin_files_lib.load_gin(gin_files, bindings, search_paths, trust, paths)
  if settings.of_script('total_steps') is None:
    raise errors.UserError(
        'It is no run of T5X.', gin_files[-1],
        'Leave out --t5x, or include gin/runs/t5x_finetune.gin.',
    )


def subject() -> subject_lib.Subject:
  """What a plan needs to know of the run that was loaded."""
  macro = settings.macro
  model = macro('MODEL')

  def init_optimizer(variables):
    # Some of its optimizers ask for the logical axes.
    state = importlib.import_module('t5x.train_state').FlaxOptimTrainState
    return state.create(model.optimizer_def, variables).param_states

  batch_size = macro('BATCH_SIZE') // (macro('NUM_MICROBATCHES') or 1)
  return subject_lib.Subject(
      model.module,
      macro('TASK_FEATURE_LENGTHS'),
      batch_size,
      macro('TRAINABLE_REGEX'),
      init_optimizer,
      jnp.dtype(macro('BASE_DTYPE', 'float32')),
      (macro('NUM_EXPERT_PARTITIONS', 1), macro('NUM_MODEL_PARTITIONS', 1)),
      told=subject_lib.example_ids(batch_size, macro('EXAMPLE_IDS')),
  )


def step(
    devices: Sequence[jax.Device] | None = None,
    change: Any = lambda module: module,
) -> step_program.StepProgram:
  """The step that `t5x.train` would compile for the run that was loaded.

  The partitioner, the optimizer and the trainer are those of the gin files.

  Args:
    devices: Devices to lay it out on, all of `jax.devices()` by default.
    change: Makes another adapted network of the run's.

  Raises:
    errors.UserError: For a mesh that does not divide, or whatever the model
      refuses.
  """
  # Not at the top: T5X imports what imports `settings`.
  script = importlib.import_module('t5x.train')
  bound = _Bound(script.train)
  with gin.config_scope('train'):  # As T5X's files of runs name it.
    data = _Bound(importlib.import_module('t5x.utils').DatasetConfig)
  model, partitioner = bound['model'], bound['partitioner']
  model.module = change(model.module)
  partitioner.devices = devices
  partitioner.get_data_layout(data['batch_size'])  # Says what does not divide.
  batch = _batch(model, data)
  initializer = bound['train_state_initializer_cls'](
      optimizer_def=model.optimizer_def,
      init_fn=model.get_initial_variables,
      input_shapes={name: x.shape for name, x in batch.items()},
      input_types={name: x.dtype for name, x in batch.items()},
      partitioner=partitioner,
  )
  axes = initializer.train_state_axes
  state = initializer.global_train_state_shape
  restore = bound['checkpoint_cfg'].restore
  if restore is not None and restore.path:
    state = layout.restored(
        state, settings.macro('TRAINABLE_REGEX'), restore.dtype
    )
  state = layout.lay_out(state, axes, partitioner.mesh)
  of_batch = dict.fromkeys(batch, partitioner.data_partition_spec)
  batch = layout.lay_out(batch, of_batch, partitioner.mesh)
  trainer = _trainer(bound, model, partitioner, state, axes)
  trained, frozen = trainable.split(
      trainable.flatten(state.params), settings.macro('TRAINABLE_REGEX')
  )
  return step_program.StepProgram(
      lower=lambda: trainer._partitioned_train_step.lower(state, batch),
      mesh=partitioner.mesh,
      frozen=frozen,
      trained=trained,
      optimizer=state._optimizer.state,
      batch=batch,
      donates_frozen=True,
      tokens=data['batch_size'] * sum(data['task_feature_lengths'].values()),
      choices=step_program.choices(
          model.module,
          batch_size=data['batch_size'],
          num_microbatches=trainer._num_microbatches or 1,
          packing=data['pack'],
          task_feature_lengths=data['task_feature_lengths'],
          base_dtype=next(iter((frozen or trained).values())).dtype,
      ),
  )


def _trainer(
    bound: '_Bound', model: Any, partitioner: Any, state: Any, axes: Any
) -> Any:
  """The trainer of `t5x.train`, without evaluation and summaries."""
  seed = bound['random_seed'] or 0
  return bound['trainer_cls'](
      model=model,
      train_state=state,
      partitioner=partitioner,
      eval_names=(),
      summary_dir=None,
      train_state_axes=axes,
      rng=jax.random.split(jax.random.PRNGKey(seed), 2)[1],
  )


class _Bound:
  """What gin gives to a function, made when it is asked for.

  Neither rows nor a tokenizer are needed for a plan, and so nobody asks.
  """

  def __init__(self, function: Any):
    self._bound = gin.get_bindings(function, resolve_references=False)

  def __getitem__(self, name: str) -> Any:
    return copy.deepcopy(self._bound[name])  # By which gin makes what it names.


def _batch(model: Any, data: _Bound) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of a batch, as the model's feature converter makes it of a task."""
  converter = model.FEATURE_CONVERTER_CLS(pack=data['pack'])
  lengths = converter.get_model_feature_lengths(data['task_feature_lengths'])
  if settings.macro('EXAMPLE_IDS') is not None:
    lengths = converters.with_ids(lengths, data['pack'])
  return {
      name: jax.ShapeDtypeStruct((data['batch_size'], length), jnp.int32)
      for name, length in lengths.items()
  }


@contextlib.contextmanager
def _script_as_main() -> Iterator[None]:
  """Puts `t5x.train` in the place of `__main__`, which its gin files import."""
  try:
    with gin.unlock_config():  # It registers its classes.
      script = importlib.import_module('t5x.train')
  except ImportError as error:
    raise errors.UserError(
        f'T5X cannot be imported: {error}.',
        where='--t5x',
        remedy='Put T5X on PYTHONPATH; docs/t5x.md says how.',
    ) from error
  main, sys.modules['__main__'] = sys.modules['__main__'], script
  try:
    yield
  finally:
    sys.modules['__main__'] = main
