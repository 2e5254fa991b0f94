# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What gin sets for a run of T5X: values of macros, and what is refused.

Refused is what surely asks for something and would do nothing, or not what it
says, in a run of ours, and what T5X finds out when much has been done already.
Of what only may be so there is a warning.
"""

import copy
import os
from pathlib import Path
from typing import Any

from absl import logging
import gin
import jax

from moe_peft import errors
from moe_peft import gin_files
from moe_peft import gin_rules
from moe_peft import gin_suggestions
from moe_peft.core import adapter
from moe_peft.core import quantized

# What T5X makes.
FOLDERS = ('MODEL_DIR', 'EVAL_OUTPUT_DIR', 'INFER_OUTPUT_DIR')
_SCRIPTS = ('train', 'evaluate', 'infer')  # T5X's functions.
_CHECKPOINTER = 'moe_peft.t5x.checkpoints.AdapterCheckpointer'
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
    'SCAN_LAYERS': "the network's own scan_layers, if it has one",
    'REMAT_POLICY': "the network's own remat_policy, if it has one",
    'ACTIVATION_DTYPE': "the network's own dtype",
}


def macro(name: str, default: Any = None) -> Any:
  """The value of a macro of the parsed configuration, built if it is one."""
  if name not in gin_files.macros():
    return default
  value = gin.query_parameter(f'%{name}')
  build = getattr(value, 'scoped_configurable_fn', None)
  return build() if build else value


def bound(selector: str, scope: str = '') -> dict[str, Any]:
  """What gin binds to the parameters of a configurable in a scope alone."""
  return gin.config._CONFIG.get((scope, selector), {})  # pylint: disable=protected-access


def argument(selector: str, name: str, scope: str = '') -> Any:
  """What gin gives a configurable for a parameter, built; None if nothing."""
  given = bound(selector) | bound(selector, scope)
  return copy.deepcopy(given.get(name))  # By which gin builds what it names.


def of_script(name: str) -> Any:
  """The same of T5X's script, whichever of them runs."""
  for _, selector in gin.config._CONFIG:  # pylint: disable=protected-access
    if selector.rpartition('.')[2] in _SCRIPTS and name in bound(selector):
      return argument(selector, name)
  return None


def saves_adapters() -> bool:
  """Whether the checkpoints of this run hold adapters alone."""
  save = bound('t5x.utils.SaveCheckpointConfig').get('checkpointer_cls')
  return getattr(save, 'config_key', ('', ''))[1] == _CHECKPOINTER


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
  check_engine()
  _check_partitioner()
  _check_loop()
  _check_folders()


def _referenced() -> set[tuple[str, str]]:
  """Scopes and selectors of what anything in the configuration refers to."""
  references = gin.config.iterate_references(gin.config._CONFIG)  # pylint: disable=protected-access
  return {x.config_key for x in references}


def _refers_to(selector: str) -> bool:
  return any(x == selector for _, x in _referenced())


def _check_names() -> None:
  """Refuses macros that nothing uses, where another was surely meant.

  Names of others are not ours to judge: files of sizes have many that no run
  uses. What only may be meant is a warning.
  """
  used = {scope for scope, x in _referenced() if x == 'gin.macro'}
  known = used & gin_rules.RULES.keys()
  # Of training: a file that it shares with evaluations may have PACKING.
  packs = copy.deepcopy(
      bound('t5x.utils.DatasetConfig', scope='train').get('pack')
  )
  for name in set(gin_files.macros()) - used:
    what = f'Nothing in this run of T5X uses the macro {name}.'
    meant = ''
    if name not in gin_rules.RULES:
      meant = gin_suggestions.misspelt(name, known)
    if meant:
      raise errors.UserError(what, name, f'Did you mean {meant}?')
    if name == 'PACKING' and packs not in (None, macro(name)):
      raise errors.UserError(what, name, f'Set {_ELSEWHERE[name]}.')
    if name in _ELSEWHERE and macro(name) is not None:
      logging.warning('%s What does the same: %s.', what, _ELSEWHERE[name])
    elif name not in gin_rules.RULES and (
        meant := gin_suggestions.similar(name, known)
    ):
      logging.warning('%s There is %s.', what, meant)


def idle_adapters() -> list[str]:
  """Adapters that are set up and belong to nothing, as gin files name them."""
  package = 'moe_peft.methods.'
  return [
      selector.removeprefix(package)
      for _, selector in gin.config._CONFIG  # pylint: disable=protected-access
      if selector.startswith(package)
      and _is_adapter(selector)
      and not _refers_to(selector)
  ]


def _is_adapter(selector: str) -> bool:
  found = gin.config._REGISTRY[selector].wrapped  # pylint: disable=protected-access
  return isinstance(found, type) and issubclass(found, adapter.MoeAdapter)


def _check_one_method() -> None:
  for name in idle_adapters():
    raise errors.UserError(
        f'{name} is set up, and the adapter is another one.', 'ADAPTER',
        'Include one method file.',
    )


def _check_includes() -> None:
  """Looks for files of runs that others undo."""
  if macro('NUM_EXPERT_PARTITIONS', 1) > 1 and not _refers_to(
      _EXPERT_PARTITIONER
  ):
    raise errors.UserError(
        'Nothing in this run of T5X uses the macro NUM_EXPERT_PARTITIONS.',
        where='NUM_EXPERT_PARTITIONS',
        remedy='Include gin/runs/t5x_expert_partitions.gin, after '
        'gin/runs/t5x_finetune.gin.',
    )
  # T5X's own file of a run says False too, so whoever wants it cannot be told.
  if saves_adapters() and not argument(
      't5x.utils.SaveCheckpointConfig', 'save_dataset'
  ):
    logging.warning(
        'utils.SaveCheckpointConfig.save_dataset = False: a run that goes on '
        'begins with the first rows again. gin/runs/t5x_adapter_checkpoints.gin'
        ' sets it where it comes after gin/runs/t5x_finetune.gin.'
    )


def check_engine() -> None:
  """Raises errors.UserError for what moe_peft.train alone does."""
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
  """Refuses periods, batches and bases that `t5x.train` cannot have."""
  with errors.refused(
      'The checkpoints that the gin files describe cannot be set up.',
      'utils.CheckpointConfig',
  ):
    checkpoints = of_script('checkpoint_cfg')
  if checkpoints is None:
    return  # It is another script.
  periods = of_script('eval_period'), getattr(checkpoints.save, 'period', None)
  if _evaluates() and all(periods) and max(periods) % min(periods):
    raise errors.UserError(
        f'EVAL_PERIOD = {periods[0]} and CHECKPOINT_PERIOD = {periods[1]}: T5X '
        'asks that one of them is a multiple of the other.', 'EVAL_PERIOD'
    )
  rows = argument('t5x.utils.DatasetConfig', 'batch_size', scope='train')
  parts = argument('t5x.trainer.Trainer', 'num_microbatches')
  if rows and parts and rows % parts:
    raise errors.UserError(
        f'BATCH_SIZE = {rows} is not a multiple of NUM_MICROBATCHES = {parts}.',
        'NUM_MICROBATCHES',
    )
  if (keep := getattr(checkpoints.save, 'keep', None)) is not None and keep < 1:
    raise errors.UserError(
        f'With keep = {keep} no checkpoint is left.',
        'utils.SaveCheckpointConfig.keep', 'None keeps all.',
    )
  base = getattr(checkpoints.restore, 'path', None)
  if isinstance(base, list | tuple) and base:
    raise errors.UserError(
        'A run of T5X begins with one base.', 'INITIAL_CHECKPOINT_PATH',
        'Give one path.',
    )


def _check_folders() -> None:
  # The first host alone writes what evaluation and inference find.
  writes = FOLDERS if jax.process_index() == 0 else FOLDERS[:1]
  for name in writes:
    folder = absolute(macro(name))
    if not folder or '://' in folder:
      continue
    parents = (Path(folder), *Path(folder).parents)
    there = next(x for x in parents if os.path.lexists(x))  # A broken link too.
    if not there.is_dir() or not os.access(there, os.W_OK):
      wrong = 'is not writable' if there.is_dir() else 'is no folder'
      raise errors.UserError(
          f'{there} {wrong}.', name, 'Choose another folder.'
      )
    if name == 'INFER_OUTPUT_DIR' and any(Path(folder).glob('*.COMPLETED')):
      logging.warning(
          '%s has answers already, and T5X makes none of them again, whatever '
          'CHECKPOINT_PATH is: choose another INFER_OUTPUT_DIR, or delete its '
          'files *.COMPLETED.', folder,
      )
