# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is done before T5X locks the configuration: gin files import this.

T5X parses gin itself and then finalizes it; there gin calls functions that
anybody may add. One reports all missing macros in one message, settings that
are refused, and a model that cannot be made. Another makes paths absolute. The
last chooses the size of the method that keeps to PARAM_BUDGET, and binds it.
"""

from collections.abc import Mapping
import sys
from typing import Any

import gin
import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft import gin_files
from moe_peft import gin_values
from moe_peft.core import trainable
from moe_peft.t5x import settings
from moe_peft.t5x import task_check
from moe_peft.training import budget

# Features whose shapes T5X's models ask for.
_FEATURES = (
    'encoder_input_tokens', 'decoder_input_tokens', 'decoder_target_tokens'
)

# Orbax takes absolute paths only, and says so at the first save.
_PATHS = (
    *settings.FOLDERS, 'INITIAL_CHECKPOINT_PATH', 'CHECKPOINT_PATH', 'BASE_PATH'
)
_OPTIMIZER = 'moe_peft.t5x.optimizer.AdapterOptimizer'


def _check(config: Any) -> None:
  del config  # The one that `gin_files` reads.
  gin_files.check_macros()
  gin_values.check_config()
  if _imported():
    settings.check()
    task_check.check()


def _imported() -> bool:
  """Whether gin files import this: other runs of the process may not."""
  return any(x.module == __name__ for x in gin.config._IMPORTS)  # pylint: disable=protected-access


def _absolute_paths(config: Any) -> Mapping[str, Any]:
  """Bindings of the absolute paths of macros that are relative ones."""
  del config
  found = {}
  # The embedded engine looks for a relative base among shipped files too.
  for name in _PATHS if _imported() else ():
    value = settings.macro(name)
    if (absolute := settings.absolute(value)) != value:
      found[f'{name}/gin.macro.value'] = absolute
  return found


def _method_transforms(config: Any) -> Mapping[str, Any]:
  """Gives T5X's optimizer what a method file binds to that of our engine.

  Raises:
    errors.UserError: If the optimizer cannot have it.
  """
  del config
  bound = settings.bound('moe_peft.core.trainable.by_path')
  found = {k: x for k, x in bound.items() if k in ('gradients', 'updates')}
  if not found or 'OPTIMIZER' not in gin_files.macros():
    return {}
  reference = gin.query_parameter('%OPTIMIZER')  # None, to evaluate.
  _, optimizer = getattr(reference, 'config_key', ('', None))
  if optimizer is not None and optimizer != _OPTIMIZER:
    raise errors.UserError(
        f'The method changes {" and ".join(found)} of its adapters, which '
        f'{optimizer.rpartition(".")[2]} has no place for.', 'OPTIMIZER',
        'Leave gin/runs/t5x_adafactor.gin out.',
    )
  return {f'{_OPTIMIZER}.{name}': x for name, x in found.items() if optimizer}


def _choose_size(config: Any) -> dict[str, Any] | None:
  """Bindings of what PARAM_BUDGET and SCALE decide, if they ask for it."""
  del config
  param_budget, scale = settings.macro('PARAM_BUDGET'), settings.macro('SCALE')
  # Flaxformer has a SCALE of its own.
  if (param_budget, scale) == (None, None) or not _imported():
    return None
  choice = None
  if param_budget is not None:
    choice = budget.choose(
        param_budget,
        _shapes,
        settings.macro('TRAINABLE_REGEX'),
        settings.macro('BUDGET_MACRO'),
    )
    print(choice, file=sys.stderr)
  found = budget.bindings(scale, choice)
  return {f'{name}/gin.macro.value': value for name, value in found.items()}


def _shapes(name: str, size: int) -> dict[str, Any]:
  """Shapes of the parameters if the macro `name` is `size`."""
  gin.bind_parameter(f'{name}/gin.macro.value', size)  # It is not locked yet.
  variables = jax.eval_shape(
      lambda: settings.macro('MODEL').get_initial_variables(
          jax.random.key(0),
          dict.fromkeys(_FEATURES, (1, 1)),
          dict.fromkeys(_FEATURES, jnp.int32),
      )
  )
  return trainable.flatten(variables['params'])


# It has to be the first: gin's own check would complain before it, about one
# macro and without a remedy.
gin.config._FINALIZE_HOOKS.insert(0, _check)  # pylint: disable=protected-access
gin.config.register_finalize_hook(_absolute_paths)
gin.config.register_finalize_hook(_choose_size)
gin.config.register_finalize_hook(_method_transforms)
