# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the values of macros may be: `RULES` has a line for each of them."""

from collections.abc import Callable, Mapping
import math
import os
import re
from typing import Any

# Says what is wrong with a value, as the end of a sentence; '' for nothing.
Rule = Callable[[Any], str]
_INT32 = 2**31


def whole(minimum: int) -> Rule:
  """A whole number of at most 32 bits."""

  def problem(value):
    if type(value) is int and minimum <= value < _INT32:
      return ''
    return f'is no whole number of at least {minimum} (and below 2**31)'

  return problem


def number(
    above: float = -math.inf,
    below: float = math.inf,
    least: float = -math.inf,
    most: float = math.inf,
) -> Rule:
  """A finite number within bounds."""
  bounds = {'above': above, 'of at least': least, 'below': below,
            'of at most': most}
  words = [f'{k} {v:g}' for k, v in bounds.items() if math.isfinite(v)]

  def problem(value):
    if type(value) in (int, float) and (
        above < value < below and least <= value <= most
    ):
      return ''
    return f'is no finite number {" and ".join(words)}'.rstrip()

  return problem


def one_of(*choices: Any) -> Rule:
  """One of a few values."""

  def problem(value):
    same = any(type(value) is type(x) and value == x for x in choices)
    return '' if same else f'is none of {", ".join(map(repr, choices))}'

  return problem


def text(value: Any) -> str:
  """A text that is not empty."""
  return '' if isinstance(value, str) and value.strip() else 'is no text'


def path(value: Any) -> str:
  """A path."""
  if isinstance(value, os.PathLike):
    return ''
  if text(value) or '\0' in value:
    return 'is no path'
  nobody = os.path.expanduser(value).startswith('~')
  return 'is in the home of nobody' if nobody else ''


def paths(value: Any) -> str:
  """A path, or as T5X has it a list of paths, which may be empty."""
  if isinstance(value, list | tuple):
    return next(filter(None, map(path, value)), '')
  return path(value)


def regex(value: Any) -> str:
  """A regular expression."""
  if text(value):
    return 'is no regular expression'
  try:
    re.compile(value)
  except re.error as error:
    return f'is no regular expression ({error})'
  return ''


def optional(rule: Rule) -> Rule:
  """What a rule allows, or None."""

  def problem(value):
    wrong = '' if value is None else rule(value)
    return wrong and f'{wrong}, nor None'

  return problem


def each(rule: Rule, kind: type = tuple) -> Rule:
  """A tuple or list, or with `kind=dict` an object by text, of such values."""
  kinds, name = (
      (Mapping, 'an object by name') if kind is dict
      else ((tuple, list), 'a tuple')
  )

  def problem(value):
    if not isinstance(value, kinds):
      return f'is not {name}'
    if kind is dict and (wrong := next(filter(text, value), None)) is not None:
      return f'has the key {wrong!r}, which is no text'
    values = value.values() if kind is dict else value
    return next((f'has {x!r}, which {rule(x)}' for x in values if rule(x)), '')

  return problem


def some(rule: Rule) -> Rule:
  """What a rule allows, unless it is empty."""
  return lambda value: rule(value) or ('' if value else 'is empty')


def ids(value: Any) -> str:
  """How many ids there are, or the different names that they have."""
  if isinstance(value, int):
    return whole(1)(value)
  if not isinstance(value, list | tuple) or not value or any(map(text, value)):
    return 'is no tuple of names, nor how many there are'
  return 'has a name twice' if len(set(value)) < len(value) else ''


_BOOL = one_of(True, False)
_COUNT = whole(1)
_RATE = number(least=0, below=1)
_SHARE = number(least=0)


def _dtype(*more: str) -> Rule:
  """A type of floats, by its name or as JAX has it, or one of `more`."""
  rule = one_of('float32', 'bfloat16', 'float16', *more)
  return lambda value: rule(getattr(value, '__name__', value))


RULES: Mapping[str, Rule] = {
    # What is trained, on what, for how long.
    'MODEL_DIR': path,
    'MIXTURE_OR_TASK_NAME': text,
    'WORD_TASK': text,
    'EVAL_MIXTURE_OR_TASK_NAME': optional(text),
    'TRAIN_FILES': paths,
    'VALIDATION_FILES': paths,
    # None, in T5X's evaluations: as long as the longest example.
    'TASK_FEATURE_LENGTHS': optional(some(each(_COUNT, dict))),
    'EXAMPLE_IDS': optional(ids),
    'TRAIN_STEPS': whole(0),
    'BATCH_SIZE': _COUNT,
    'NUM_MICROBATCHES': optional(_COUNT),
    'PACKING': _BOOL,
    'SEED': whole(0),
    'RANDOM_SEED': optional(whole(0)),
    'TRAINABLE_REGEX': regex,
    'FRESH_REGEX': regex,
    'PARAM_BUDGET': optional(number(above=0)),
    'BUDGET_MACRO': optional(text),
    'SCALE': optional(number(above=0)),
    # The base.
    'INITIAL_CHECKPOINT_PATH': optional(paths),
    'BASE_PATH': optional(path),
    'VOCABULARY_FILE': path,
    'BOS_ID': optional(whole(0)),
    'BASE_DTYPE': _dtype('int8', 'nf4'),
    'ACTIVATION_DTYPE': _dtype(),
    'DROPOUT_RATE': _RATE,
    'SCAN_LAYERS': _BOOL,
    'REMAT_POLICY': one_of('none', 'minimal', 'full', 'auto'),
    'ATTENTION': one_of('auto', 'plain', 'chunked', 'fused'),
    # Optimization.
    'LEARNING_RATE': _SHARE,
    'ROUTER_LEARNING_RATE': _SHARE,
    'WARMUP_STEPS': optional(whole(0)),
    'WEIGHT_DECAY': _SHARE,
    'LABEL_SMOOTHING': _RATE,
    'Z_LOSS': _SHARE,
    'BETA': number(above=0),
    'LOSS_FACTORS': each(number(), dict),
    'ADAFACTOR_DECAY_RATE': number(above=0),
    'ADAFACTOR_STEP_OFFSET': whole(1 - _INT32),
    'ADAFACTOR_PARAMETER_SCALE': _BOOL,
    'ADAFACTOR_FACTORED': _BOOL,
    # Evaluation, checkpoints, logs.
    'EVAL_PERIOD': whole(0),
    'EVAL_STEPS': _COUNT,
    'EVAL_BATCH_SIZE': _COUNT,
    'EVAL_EXAMPLES': optional(_COUNT),
    'EVAL_SPLIT': text,
    'EVALUATOR_NUM_EXAMPLES': optional(_COUNT),
    'BASE_RESULTS_DIR': optional(path),
    'CHECKPOINT_PERIOD': _COUNT,
    'CHECKPOINTS_TO_KEEP': _COUNT,
    'LOG_PERIOD': _COUNT,
    'MAX_SKIPPED_STEPS': _COUNT,
    'ALLOW_CHANGED_DATA': _BOOL,
    'ALLOW_CHANGED_METHOD': _BOOL,
    'SITE_METRICS': each(text),
    # Devices.
    'COMPILATION_CACHE_DIR': optional(path),
    'NUM_EXPERT_PARTITIONS': _COUNT,
    'NUM_MODEL_PARTITIONS': _COUNT,
    # Data sets.
    'CACHE_DIR': optional(path),
    'MAX_EVAL_ROWS': optional(_COUNT),
    'USE_CACHED_TASKS': _BOOL,
    # Methods.
    'SITES': regex,
    'ATTENTION_SITES': regex,
    'MLP_SITES': regex,
    'NUM_EXPERTS': _COUNT,
    'EXPERTS_BY_DEPTH': optional(some(each(_COUNT))),
    'NUM_SELECTED_EXPERTS': _COUNT,
    'ACTIVE_EXPERTS': optional(some(each(whole(0)))),
    'TEMPERATURE': number(above=0),
    'HIDDEN_STATES': regex,
    'LAYERWISE': _BOOL,
    'CLASSIFIER_DEPTH': _COUNT,
    'CLASSIFIER_WIDTH': _COUNT,
    'CLASSIFIER_DROPOUT': _RATE,
    'FEATURES': some(each(some(each(text)))),
    'FIRST_K': _COUNT,
    'GROWTH_STEPS': optional(_COUNT),
    'RANK': _COUNT,
    'ALPHA': number(above=0),
    'MAX_THRESHOLD': optional(number(above=0, most=1)),
    'NORMALIZE': _BOOL,
    'RESIDUAL': _BOOL,
    'GATE_DROPOUT': _RATE,
    'ADAPTER_DROPOUT': _RATE,
    'EXPERT_DROPOUT': _RATE,
    'READS_INPUTS': _BOOL,
    'MAGNITUDE': _BOOL,
    'LAMBDA_UNITS': _COUNT,
    'MASS': number(above=0, most=1),
    'ENTROPY_THRESHOLD': number(above=0),
    'TSALLIS_Q': number(above=0),
    'INPUT_FACTORS': optional(some(each(_COUNT))),
    'OUTPUT_FACTORS': optional(some(each(_COUNT))),
    'STARTS_FROM_BASE': _BOOL,
    'B_RATE_RATIO': number(above=0),
    'DAMPING': number(above=0),
    'CAPACITY_FACTOR': number(above=0),
    'CAPACITY_AT_EVALUATION': _BOOL,
    'AUX_LOSS_FACTOR': _SHARE,
    'ROUTER_Z_LOSS_FACTOR': _SHARE,
    'CONSISTENCY_LOSS_FACTOR': _SHARE,
    'CONTRASTIVE_LOSS_FACTOR': _SHARE,
    'ORTHOGONALITY_LOSS_FACTOR': _SHARE,
    'VARIANCE_LOSS_FACTOR': _SHARE,
    'TSALLIS_LOSS_FACTOR': _SHARE,
    # Studies and their claims.
    'BANK_OF': some(each(text)),
    'LEFT_OUT': each(text),
    'GAIN': number(above=0),
    'MARGIN': number(above=0),
    'SEED_DEVIATION': number(above=0),
    'EVERY_CONTRAST': _BOOL,
}
