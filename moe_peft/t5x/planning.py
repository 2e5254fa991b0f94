# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A run of `t5x.train` for `python -m moe_peft plan --t5x`."""

from collections.abc import Iterator, Sequence
import contextlib
import importlib
import sys

import gin
import jax.numpy as jnp

from moe_peft import errors
from moe_peft import gin_files as gin_files_lib
from moe_peft.t5x import gin_check
from moe_peft.training import subject as subject_lib


def subject(
    gin_files: Sequence[str],
    bindings: Sequence[str],
    search_paths: str,
    trust: bool = False,
) -> subject_lib.Subject:
  """The run of `t5x.train` that gin files describe.

  Args:
    gin_files: As of `gin_files.load_gin`.
    bindings: The same.
    search_paths: The same.
    trust: The same.

  Raises:
    errors.UserError: If T5X is missing, or for wrong files and bindings.
  """
  paths = {'MODEL_DIR': 'unused', 'INITIAL_CHECKPOINT_PATH': 'unused'}
  with _script_as_main():
    gin_files_lib.load_gin(gin_files, bindings, search_paths, trust, paths)
    model = gin_check.macro('MODEL')

  def init_optimizer(variables):
    # Some of its optimizers ask for the logical axes.
    state = importlib.import_module('t5x.train_state').FlaxOptimTrainState
    return state.create(model.optimizer_def, variables).param_states

  macro = gin_check.macro
  return subject_lib.Subject(
      model.module,
      macro('TASK_FEATURE_LENGTHS'),
      macro('BATCH_SIZE') // (macro('NUM_MICROBATCHES') or 1),
      macro('TRAINABLE_REGEX'),
      init_optimizer,
      jnp.dtype(macro('BASE_DTYPE', 'float32')),
      (macro('NUM_EXPERT_PARTITIONS', 1), macro('NUM_MODEL_PARTITIONS', 1)),
  )


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
