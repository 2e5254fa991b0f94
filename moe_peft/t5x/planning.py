# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A run of `t5x.train` for `python -m moe_peft plan --t5x`."""

from collections.abc import Sequence
import importlib
import sys
from typing import Any

import gin
import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft import gin_files
from moe_peft.compile import planning
from moe_peft.training import budget

# Features whose shapes T5X's models ask for.
_FEATURES = (
    'encoder_input_tokens', 'decoder_input_tokens', 'decoder_target_tokens'
)


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
    gin_files.load_gin(
        gin_files,
        ["MODEL_DIR='unused'", "INITIAL_CHECKPOINT_PATH='unused'", *bindings],
        search_paths,
    )
    model = gin.query_parameter('%MODEL').scoped_configurable_fn()
    _apply_budget(model)
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


def _apply_budget(model: Any) -> None:
  """Chooses the size that keeps to PARAM_BUDGET, as the run does."""
  param_budget = _macro('PARAM_BUDGET')
  if param_budget is None:
    return
  shapes = {name: (1, 1) for name in _FEATURES}
  types = {name: jnp.int32 for name in _FEATURES}
  budget.apply(
      param_budget,
      lambda: model.get_initial_variables(
          jax.random.key(0), shapes, types
      )['params'],
      _macro('TRAINABLE_REGEX'),
      _macro('BUDGET_MACRO'),
  )


def _macro(name: str, default: Any = None) -> Any:
  if name not in gin_files.macros():
    return default
  value = gin.query_parameter(f'%{name}')
  resolve = getattr(value, 'scoped_configurable_fn', None)
  return resolve() if resolve else value
