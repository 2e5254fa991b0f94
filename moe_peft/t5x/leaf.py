# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""An experiment of the embedded engine as a gin file of `t5x.train`.

The model, the method, the optimizers and their schedules are bound as they are:
both engines have the same. Only what holds them together is T5X's.
"""

from collections.abc import Iterator, Mapping
import math
from pathlib import Path
import re

from moe_peft import atomic
from moe_peft import errors
from moe_peft.core import quantized
from moe_peft.models import decoder_only
from moe_peft.models import encoder_decoder
from moe_peft.runs import config_file
from moe_peft.t5x import settings
from moe_peft.training import bases
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import objectives

_MODELS = {
    encoder_decoder.EncoderDecoderModel: 'encoder_decoder',
    decoder_only.DecoderOnlyModel: 'decoder_only',
}
# What the embedded engine alone binds and imports.
_ENGINE = re.compile(
    r'(.*/)?(experiment\.Experiment|objectives\.\w+|encoder_decoder\.\w+'
    r'|decoder_only\.\w+)\..*'
)
_ENGINE_IMPORT = re.compile(
    r'from moe_peft\.(training|models|core) import '
    r'(experiment|objectives|encoder_decoder|decoder_only)$'
)
_RENAMED = {'trainable.by_path.rules': 'optimizer.AdapterOptimizer.rules'}
# Macros that the files of T5X's runs refer to.
_ROOTS = (
    'MODULE', 'VOCABULARY', 'DROPOUT_RATE', 'TRAINABLE_REGEX', 'FRESH_REGEX',
)
_LEAF = """\
# {title}
#
#   python -m t5x.train --gin_file={file} --gin.MODEL_DIR="'runs/{file.stem}'"
#
# Written by python -m moe_peft t5x_config: the same model, method, optimizer,
# schedule, rows and order of rows.
from __gin__ import dynamic_registration

import __main__ as train_script
{imports}
from moe_peft.data import example_ids
from moe_peft.t5x import optimizer
from t5x import utils

include 'gin/models/t5x_{model}.gin'
include 'gin/runs/t5x_finetune.gin'
include 'gin/runs/t5x_adapter_checkpoints.gin'
{more}
{macros}

train_script.train.stats_period = {log_period}
train/utils.DatasetConfig.pack = {packing}
train_eval/utils.DatasetConfig:
  pack = {packing}
  split = {eval_split!r}
train_eval/example_ids.with_ids.name = {eval_task!r}
infer_eval/example_ids.with_ids.name = {eval_task!r}
infer_eval/utils.DatasetConfig:
  split = {eval_split!r}
  batch_size = {eval_batch_size}

{bindings}
"""


def make(
    experiment: experiment_lib.Experiment,
    config: str,
    base: str,
    file: Path,
    cached: bool = False,
) -> str:
  """The gin file.

  Args:
    experiment: What gin has built from the configuration.
    config: The configuration, as `gin.config_str()` makes it.
    base: The T5X checkpoint of the base.
    file: Where the gin file will lie.
    cached: Whether the task is read from a cache.

  Raises:
    errors.UserError: If the engines do not mean the same by it.
  """
  _check(experiment)
  # A method file may have taken the place of another, which T5X's is told.
  idle = tuple(f'{name}.' for name in settings.idle_adapters())
  bound = {
      _RENAMED.get(name, name): value
      for name, value in config_file.bindings(config, file).items()
      if not _ENGINE.fullmatch(name) and not name.startswith(idle)
  }
  macros = config_file.macros(bound)
  bindings = {k: v for k, v in bound.items() if k not in macros}
  kept = set(_used([f'%{x}' for x in _ROOTS] + list(bindings.values()), macros))
  partitions = experiment.num_expert_partitions
  return _LEAF.format(
      title=f'{experiment.mixture_or_task_name} under T5X.',
      file=file,
      imports='\n'.join(
          line for line in config.splitlines()
          if re.match(r'(from|import) ', line) and '__gin__' not in line
          and not _ENGINE_IMPORT.match(line)
      ),
      model=_MODELS[type(experiment.model)],
      more="include 'gin/runs/t5x_expert_partitions.gin'\n"
      if partitions > 1 else '',
      macros=_lines(
          {k: macros[k] for k in macros if k in kept}
          | _engine_macros(experiment, base, cached)
      ),
      log_period=experiment.log_period,
      packing=experiment.packing,
      eval_task=experiment.eval_name,
      eval_split=experiment.eval_split,
      eval_batch_size=experiment.eval_batch_size,
      bindings=_lines(bindings),
  )


def base_of(experiment: experiment_lib.Experiment, folder: Path) -> str:
  """The base as a T5X checkpoint; written into `folder` if it is none.

  Raises:
    errors.UserError: If the experiment has no base, if the engines do not mean
      the same by it, or if the folder is taken.
  """
  _check(experiment)  # Before anything is written.
  path = experiment.initial_checkpoint_path
  if path is None:
    raise errors.UserError(
        'The files of T5X runs fine-tune a base, and there is none.',
        where='INITIAL_CHECKPOINT_PATH',
    )
  found = bases.t5x_checkpoint(path)
  if found is None:
    params = bases.read_arrays(bases.find(path))
    with atomic.new_folder(folder, folder) as whole:
      written = bases.write_t5x(params, whole).relative_to(whole.absolute())
    found = folder / written
  return str(found.absolute())


def _check(experiment: experiment_lib.Experiment) -> None:
  settings.check_engine()  # Macros that the leaf may not have any more.
  if type(experiment.objective) is not objectives.TargetTokens:
    raise errors.UserError(
        f'{type(experiment.objective).__name__} is for the embedded engine; '
        'T5X trains on targets.',
        where='experiment.Experiment.objective',
        remedy='Train it with python -m moe_peft train.',
    )
  if not experiment.train_steps:
    raise errors.UserError(
        'A run of T5X without a step scores nothing.', where='TRAIN_STEPS',
        remedy='Score the model with python -m moe_peft train.',
    )
  if experiment.num_microbatches > 1:
    raise errors.UserError(
        'T5X adds up the gradients of microbatches, each of them a mean; here '
        'they are parts of one mean.',
        where='NUM_MICROBATCHES',
        remedy='Set it to 1, and in the file that is written to what T5X shall '
        'do.',
    )
  if settings.macro('GROWTH_STEPS') is not None:
    raise errors.UserError(
        'T5X tells a model no training step, by which experts are added.',
        where='GROWTH_STEPS', remedy='Set it to None: k experts at once.',
    )
  if type(experiment.model) not in _MODELS:
    raise errors.UserError(
        f'T5X has no counterpart of {type(experiment.model).__name__}.', 'MODEL'
    )


def _engine_macros(
    experiment: experiment_lib.Experiment, base: str, cached: bool
) -> Mapping[str, str]:
  """What both engines take from macros, as gin source."""
  model = experiment.model
  eval_period, checkpoint_period = _periods(experiment)
  values = {
      'INITIAL_CHECKPOINT_PATH': base,
      'MIXTURE_OR_TASK_NAME': experiment.mixture_or_task_name,
      'TASK_FEATURE_LENGTHS': dict(experiment.task_feature_lengths),
      'EXAMPLE_IDS': experiment.example_ids,
      'USE_CACHED_TASKS': cached,
      'TRAIN_STEPS': experiment.train_steps,
      'BATCH_SIZE': experiment.batch_size,
      'SEED': experiment.seed,
      'BASE_DTYPE': quantized.name_of(experiment.base_dtype),
      'EVAL_PERIOD': eval_period,
      'EVALUATOR_NUM_EXAMPLES': experiment.eval_examples,
      'CHECKPOINT_PERIOD': checkpoint_period,
      'NUM_MODEL_PARTITIONS': experiment.num_model_partitions,
      'LOSS_FACTORS': dict(model.loss_factors),
      'Z_LOSS': model.z_loss,
      'LABEL_SMOOTHING': model.label_smoothing,
  }
  if isinstance(model, decoder_only.DecoderOnlyModel):
    values['BOS_ID'] = model.bos_id
  if experiment.num_expert_partitions > 1:
    values['NUM_EXPERT_PARTITIONS'] = experiment.num_expert_partitions
  return {name: repr(value) for name, value in values.items()}


def _periods(experiment: experiment_lib.Experiment) -> tuple[int, int]:
  """Steps between evaluations and between checkpoints.

  T5X asks that one of them is a multiple of the other, and does both at the end
  of a run too.
  """
  evaluation = experiment.eval_period or experiment.train_steps
  checkpoint = experiment.checkpoint_period
  least = min(evaluation, checkpoint)
  return (
      math.ceil(evaluation / least) * least,
      math.ceil(checkpoint / least) * least,
  )


def _used(values: list[str], macros: Mapping[str, str]) -> Iterator[str]:
  """Names of the macros that values refer to, directly or through others."""
  for value in values:
    names = [x for x in re.findall(r'%(\w+)', value) if x in macros]
    yield from names
    yield from _used([macros[x] for x in names], macros)


def _lines(values: Mapping[str, str]) -> str:
  return '\n'.join(f'{name} = {value}' for name, value in values.items())
