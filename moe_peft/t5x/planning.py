# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A run of `t5x.train` for `python -m moe_peft.plan --t5x`."""

import importlib
import sys
from typing import Any, Sequence

import gin
import jax.numpy as jnp

from moe_peft import command_line
from moe_peft import errors
from moe_peft.analysis import planning


def subject(
    gin_files: Sequence[str], bindings: Sequence[str], search_paths: str
) -> planning.Subject:
  """The run of `t5x.train` that gin files describe.

  Raises:
    errors.UserError: If T5X is missing, or for wrong files and bindings.
  """
  try:
    with gin.unlock_config():  # It registers its classes.
      script = importlib.import_module('t5x.train')
  except ImportError as error:
    raise errors.UserError(
        f'--t5x needs T5X on PYTHONPATH ({error}); see the README.'
    ) from error
  # Its gin files import `__main__` and mean the script.
  main, sys.modules['__main__'] = sys.modules['__main__'], script
  try:
    command_line.load_gin(
        gin_files,
        ["MODEL_DIR='unused'", "INITIAL_CHECKPOINT_PATH='unused'", *bindings],
        search_paths,
    )
    model = gin.query_parameter('%MODEL').scoped_configurable_fn()
  finally:
    sys.modules['__main__'] = main

  def init_optimizer(variables):
    # Some of its optimizers ask for the logical axes.
    state = importlib.import_module('t5x.train_state').FlaxOptimTrainState
    return state.create(model.optimizer_def, variables).param_states

  return planning.Subject(
      model.module,
      _macro('TASK_FEATURE_LENGTHS'),
      _macro('BATCH_SIZE') // (_macro('NUM_MICROBATCHES') or 1),
      _macro('TRAINABLE_REGEX'),
      init_optimizer,
      jnp.dtype(_macro('BASE_DTYPE', 'float32')),
      (_macro('NUM_EXPERT_PARTITIONS', 1), _macro('NUM_MODEL_PARTITIONS', 1)),
  )


def _macro(name: str, default: Any = None) -> Any:
  if name not in command_line.macros():
    return default
  value = gin.query_parameter(f'%{name}')
  resolve = getattr(value, 'scoped_configurable_fn', None)
  return resolve() if resolve else value
