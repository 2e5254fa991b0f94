# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What gin sets for a run of T5X: values of macros, and what is refused.

Refused is what asks for something and would do nothing, or not what it says, in
a run of ours, and what T5X finds out when much has been done already.
"""

import importlib
import os
from pathlib import Path
from typing import Any

import gin

from moe_peft import errors
from moe_peft import gin_files
from moe_peft import gin_rules
from moe_peft import gin_suggestions
from moe_peft.core import adapter
from moe_peft.core import quantized

# What T5X makes.
FOLDERS = ('MODEL_DIR', 'EVAL_OUTPUT_DIR', 'INFER_OUTPUT_DIR')
_EXPERT_PARTITIONER = 'moe_peft.t5x.partitioners.ExpertPartitioner'
# Macros of the embedded engine, and of our networks, that files of T5X need not
# use; and what does the same there.
_ELSEWHERE = {
    'PACKING': 'train/utils.DatasetConfig.pack',
    'EVAL_EXAMPLES': 'EVALUATOR_NUM_EXAMPLES',
    'EVAL_BATCH_SIZE': 'infer_eval/utils.DatasetConfig.batch_size',
    'EVAL_SPLIT': 'infer_eval/utils.DatasetConfig.split',
    'EVAL_MIXTURE_OR_TASK_NAME': 'infer_eval/example_ids.with_ids.name',
    'CHECKPOINTS_TO_KEEP': 'utils.SaveCheckpointConfig.keep',
    'LOG_PERIOD': 'train_script.train.stats_period',
    'SCAN_LAYERS': 'network.T5Config.scan_layers of examples.scalable_t5',
    'REMAT_POLICY': 'network.T5Config.remat_policy of examples.scalable_t5',
    'ACTIVATION_DTYPE': 'network.T5Config.dtype',
}


def macro(name: str, default: Any = None) -> Any:
  """The value of a macro of the parsed configuration, built if it is one."""
  if name not in gin_files.macros():
    return default
  value = gin.query_parameter(f'%{name}')
  build = getattr(value, 'scoped_configurable_fn', None)
  return build() if build else value


def bound(selector: str) -> dict[str, Any]:
  """What gin binds to the parameters of a configurable, in no scope."""
  return gin.config._CONFIG.get(('', selector), {})  # pylint: disable=protected-access


def absolute(path: Any) -> Any:
  """The absolute path of a local one, or those of a list; all else as it is."""
  if isinstance(path, (list, tuple)):
    return type(path)(map(absolute, path))
  if not isinstance(path, str) or not path or '://' in path:
    return path
  return os.path.abspath(os.path.expanduser(path))


def check() -> None:
  """Checks what was parsed.

  Raises:
    errors.UserError: For what is refused.
  """
  _check_names()
  _check_one_method()
  _check_includes()
  _check_engine()
  _check_partitioner()
  _check_loop()
  _check_folders()
  _check_tasks(_model())


def _model() -> Any:
  with errors.refused(
      'The model that the gin files describe cannot be made.', 'MODEL'
  ):
    return macro('MODEL')


def _references() -> list[Any]:
  return list(gin.config.iterate_references(gin.config._CONFIG))  # pylint: disable=protected-access


def _check_names() -> None:
  """Refuses macros that nothing uses, where another was surely meant.

  Names of others are not ours to judge: files of sizes have many that no run
  uses.
  """
  used = {x.scoped_selector.removesuffix('/gin.macro') for x in _references()}
  known = gin_rules.RULES.keys()
  for name in set(gin_files.macros()) - used:
    meant = name not in known and gin_suggestions.misspelt(name, used & known)
    if meant:
      remedy = f'Did you mean {meant}?'
    elif name in _ELSEWHERE and macro(name) is not None:
      remedy = f'Set {_ELSEWHERE[name]}.'
    else:
      continue
    raise errors.UserError(
        f'Nothing in this run of T5X uses the macro {name}.', name, remedy
    )


def _check_one_method() -> None:
  """Refuses adapters that are set up and belong to nothing."""
  used = {x.selector for x in _references()}
  for _, selector in list(gin.config._CONFIG):  # pylint: disable=protected-access
    if not selector.startswith('moe_peft.methods.'):
      continue
    found = gin.config._REGISTRY[selector]  # pylint: disable=protected-access
    is_adapter = isinstance(found.wrapped, type) and issubclass(
        found.wrapped, adapter.MoeAdapter
    )
    if is_adapter and not any(f'.{selector}'.endswith(f'.{x}') for x in used):
      raise errors.UserError(
          f'{selector.removeprefix("moe_peft.methods.")} is set up, and the '
          'adapter is another one.', 'ADAPTER', 'Include one method file.',
      )


def _check_includes() -> None:
  """Refuses files of runs that others undo."""
  if macro('NUM_EXPERT_PARTITIONS', 1) > 1 and not any(
      f'.{_EXPERT_PARTITIONER}'.endswith(f'.{x.selector}')
      for x in _references()
  ):
    raise errors.UserError(
        'Nothing in this run of T5X uses the macro NUM_EXPERT_PARTITIONS.',
        where='NUM_EXPERT_PARTITIONS',
        remedy='Include gin/runs/t5x_expert_partitions.gin, after '
        'gin/runs/t5x_finetune.gin.',
    )
  save = bound('t5x.utils.SaveCheckpointConfig')
  if 'checkpointer_cls' in save and not save.get('save_dataset'):
    raise errors.UserError(
        'The place in the data would not be saved.',
        where='utils.SaveCheckpointConfig.save_dataset',
        remedy='Include gin/runs/t5x_adapter_checkpoints.gin after '
        'gin/runs/t5x_finetune.gin.',
    )


def _check_engine() -> None:
  """Refuses what moe_peft.train alone does."""
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


def _check_partitioner() -> None:
  stock = bound('t5x.partitioning.PjitPartitioner')
  for name, of_t5x in (('num_partitions', 1), ('model_parallel_submesh', None)):
    if stock.get(name, of_t5x) != of_t5x:
      raise errors.UserError(
          'The partitioner of this run is another one, which does not read '
          'this.',
          where=f'partitioning.PjitPartitioner.{name}',
          remedy='Set NUM_MODEL_PARTITIONS.' if name == 'num_partitions'
          else f'Set partitioners.Partitioner.{name}.',
      )


def _evaluates() -> bool:
  """Whether training has evaluations, without which T5X reads no period."""
  data = ('train_eval_dataset_cfg', 'infer_eval_dataset_cfg')
  return any(
      arguments.get(name) is not None
      for arguments in gin.config._CONFIG.values()  # pylint: disable=protected-access
      for name in data
  )


def _check_loop() -> None:
  periods = macro('EVAL_PERIOD'), macro('CHECKPOINT_PERIOD')
  if _evaluates() and all(periods) and max(periods) % min(periods):
    raise errors.UserError(
        f'EVAL_PERIOD = {periods[0]} and CHECKPOINT_PERIOD = {periods[1]}: T5X '
        'asks that one of them is a multiple of the other.', 'EVAL_PERIOD'
    )
  rows, parts = macro('BATCH_SIZE'), macro('NUM_MICROBATCHES')
  if rows and parts and rows % parts:
    raise errors.UserError(
        f'BATCH_SIZE = {rows} is not a multiple of NUM_MICROBATCHES = {parts}.',
        'NUM_MICROBATCHES',
    )
  base = macro('INITIAL_CHECKPOINT_PATH')
  if isinstance(base, list | tuple) and base:
    raise errors.UserError(
        'A run of T5X begins with one base.', 'INITIAL_CHECKPOINT_PATH',
        'Give one path.',
    )


def _check_tasks(model: Any) -> None:
  if (module := macro('MIXTURE_OR_TASK_MODULE')) is not None:
    # T5X imports it too, after our gin files have looked for the task.
    with errors.refused('It cannot be imported.', 'MIXTURE_OR_TASK_MODULE'):
      importlib.import_module(module)
  lengths = macro('TASK_FEATURE_LENGTHS')
  if model is None or lengths is None:
    return
  features = model.FEATURE_CONVERTER_CLS(pack=False).TASK_FEATURES
  if set(lengths) != set(features):
    raise errors.UserError(
        f'The lengths are those of {", ".join(lengths)}, and the model takes '
        f'{", ".join(features)}.', 'TASK_FEATURE_LENGTHS',
        f'Give {dict.fromkeys(features, 64)}, for example.',
    )


def _check_folders() -> None:
  for name in FOLDERS:
    folder = absolute(macro(name))
    if not folder or '://' in folder:
      continue
    parents = (Path(folder), *Path(folder).parents)
    there = next(x for x in parents if x.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
      wrong = 'is not writable' if there.is_dir() else 'is a file'
      raise errors.UserError(
          f'{there} {wrong}.', name, 'Choose another folder.'
      )
