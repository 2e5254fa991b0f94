# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is done before T5X locks the configuration: gin files import this.

T5X parses gin itself and then finalizes it; there gin calls functions that
anybody may add. One reports all missing macros in one message, and settings of
T5X that would do nothing, or not what they say, in a run of ours. Another makes
paths absolute. The last chooses the size of the method that keeps to
PARAM_BUDGET, and binds it.
"""

from collections.abc import Mapping
import os
import sys
from typing import Any

import gin
import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft import gin_files
from moe_peft import gin_values
from moe_peft.core import quantized
from moe_peft.core import trainable
from moe_peft.training import budget

# Features whose shapes T5X's models ask for.
_FEATURES = (
    'encoder_input_tokens', 'decoder_input_tokens', 'decoder_target_tokens'
)

# Orbax takes absolute paths only, and says so at the first save.
_PATHS = (
    'MODEL_DIR', 'INITIAL_CHECKPOINT_PATH', 'EVAL_OUTPUT_DIR',
    'INFER_OUTPUT_DIR', 'CHECKPOINT_PATH', 'BASE_PATH',
)
_OPTIMIZER = 'moe_peft.t5x.optimizer.AdapterOptimizer'
_STOCK_PARTITIONER = 't5x.partitioning.PjitPartitioner'


def macro(name: str, default: Any = None) -> Any:
  """The value of a macro of the parsed configuration, built if it is one."""
  if name not in gin_files.macros():
    return default
  value = gin.query_parameter(f'%{name}')
  build = getattr(value, 'scoped_configurable_fn', None)
  return build() if build else value


def _check(config: Any) -> None:
  del config  # The one that `gin_files` reads.
  gin_files.check_macros()
  gin_values.check_config()
  if _imported():
    _check_settings_of_t5x()


def _imported() -> bool:
  """Whether gin files import this: other runs of the process may not."""
  return any(x.module == __name__ for x in gin.config._IMPORTS)  # pylint: disable=protected-access


def _check_settings_of_t5x() -> None:
  """Refuses what our files of runs do not read, where it asks for something."""
  if macro('TRAIN_STEPS_RELATIVE'):
    raise errors.UserError(
        'Steps are counted from 0 here, whatever the base has been through, '
        'and the learning rate follows TRAIN_STEPS.',
        where='TRAIN_STEPS_RELATIVE',
        remedy='Give that number as TRAIN_STEPS instead.',
    )
  if macro('STARTS_FROM_BASE'):
    raise errors.UserError(
        'This method begins with parts of the base, which T5X reads after the '
        'adapters are made.', where='STARTS_FROM_BASE',
        remedy='Train it with python -m moe_peft train.',
    )
  if macro('REMAT_POLICY') == 'auto':
    raise errors.UserError(
        'T5X compiles its step once; moe_peft.train finds what fits.',
        where='REMAT_POLICY',
        remedy="Use 'none', 'minimal' or 'full'.",
    )
  if macro('BASE_DTYPE') in quantized.KINDS:
    raise errors.UserError(
        'T5X restores a base as floats; moe_peft.train quantizes one.',
        where='BASE_DTYPE',
        remedy="Use 'bfloat16', and NUM_MODEL_PARTITIONS if it does not fit.",
    )
  bound = gin.config._CONFIG.get(('', _STOCK_PARTITIONER), {})  # pylint: disable=protected-access
  for name, of_t5x in (('num_partitions', 1), ('model_parallel_submesh', None)):
    if bound.get(name, of_t5x) != of_t5x:
      raise errors.UserError(
          'The partitioner of this run is another one, which does not read '
          'this.',
          where=f'partitioning.PjitPartitioner.{name}',
          remedy='Set NUM_MODEL_PARTITIONS.' if name == 'num_partitions'
          else f'Set partitioners.Partitioner.{name}.',
      )


def _absolute_paths(config: Any) -> Mapping[str, Any]:
  """Bindings of the absolute paths of macros that are relative ones."""
  del config
  found = {}
  for name in _PATHS:
    value = macro(name)
    if (absolute := _absolute(value)) != value:
      found[f'{name}/gin.macro.value'] = absolute
  return found


def _method_transforms(config: Any) -> Mapping[str, Any]:
  """Gives T5X's optimizer what a method file binds to that of our engine.

  Raises:
    errors.UserError: If the optimizer cannot have it.
  """
  del config
  bound = gin.config._CONFIG.get(('', 'moe_peft.core.trainable.by_path'), {})  # pylint: disable=protected-access
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


def _absolute(path: Any) -> Any:
  if isinstance(path, (list, tuple)):
    return type(path)(map(_absolute, path))
  if not isinstance(path, str) or not path or '://' in path:
    return path
  return os.path.abspath(os.path.expanduser(path))


def _choose_size(config: Any) -> dict[str, Any] | None:
  """Bindings of what PARAM_BUDGET and SCALE decide, if they ask for it."""
  del config
  param_budget, scale = macro('PARAM_BUDGET'), macro('SCALE')
  # Flaxformer has a SCALE of its own.
  if (param_budget, scale) == (None, None) or not _imported():
    return None
  choice = None
  if param_budget is not None:
    choice = budget.choose(
        param_budget, _shapes, macro('TRAINABLE_REGEX'), macro('BUDGET_MACRO')
    )
    print(choice, file=sys.stderr)
  found = budget.bindings(scale, choice)
  return {f'{name}/gin.macro.value': value for name, value in found.items()}


def _shapes(name: str, size: int) -> dict[str, Any]:
  """Shapes of the parameters if the macro `name` is `size`."""
  gin.bind_parameter(f'{name}/gin.macro.value', size)  # It is not locked yet.
  variables = jax.eval_shape(
      lambda: macro('MODEL').get_initial_variables(
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
