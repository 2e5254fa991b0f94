# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The `adapter_config.json` of a PEFT LoRA that somebody else has made.

Every field is either read, or known to change nothing that the adapter
computes, or empty; anything else is refused by name. The fields are those of
peft 0.21 (`tuners/lora/config.py`).
"""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import math
from pathlib import Path
import re
import reprlib
import time
from typing import Any

from moe_peft import errors
from moe_peft import gin_files
from moe_peft.hf import folders

# Initializations that leave the base as it is: the trained adapter is a plain
# LoRA.
_PLAIN_INITS = (True, False, 'gaussian', 'eva', 'orthogonal')
_CONVERT = (
    'Convert it to a plain LoRA first; save_pretrained of PEFT does so, given '
    'path_initial_model_for_weight_conversion.'
)
_READ = {
    'peft_type', 'r', 'lora_alpha', 'use_rslora', 'rank_pattern',
    'alpha_pattern', 'bias', 'init_lora_weights', 'target_modules',
    'exclude_modules',
}
# Fields about training or the runtime, and fields that name the adapted layers,
# which the tensors name too.
_NO_MATTER = {
    'auto_mapping', 'base_model_name_or_path', 'revision', 'task_type',
    'inference_mode', 'peft_version', 'lora_dropout', 'layers_to_transform',
    'layers_pattern', 'megatron_core', 'qalora_group_size', 'runtime_config',
    'eva_config',
}
_MAX_RANK = 2**16
_MAX_ALPHA = 1e6
# Regular expressions come from strangers. Counted repetition and Unicode's
# classes make large programs of short texts and are refused; all expressions
# together may take `_MAX_SECONDS`.
_PATTERN = re.compile(
    r'(?:[\w.*+?|()\[\]^$:/-]|\\[.\-/wWdDsSb]){1,500}', re.ASCII
)
_MAX_SECONDS = 3.0
# Fields, of all methods of PEFT, whose texts or keys PEFT matches as regular
# expressions. Names of modules are such expressions too, and cheap ones.
_MATCHED = {
    'target_modules', 'exclude_modules', 'feedforward_modules', 'modules',
    'layers_pattern', 'rank_pattern', 'alpha_pattern', 'target_parameters',
}
_NAMES = re.compile(r'(?:\w|\\?[./-]|\|)*', re.ASCII)


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """What a LoRA computes, checked.

  Attributes:
    file: The file, for messages.
    rank: Rank of the modules that `rank_pattern` does not match.
    alpha: Their `alpha`.
    use_rslora: Whether the scale is alpha / sqrt(rank), and not alpha / rank.
    rank_pattern: Ranks by regular expressions of modules.
    alpha_pattern: The same of `alpha`.
  """

  file: Path
  rank: int
  alpha: float
  use_rslora: bool
  rank_pattern: Mapping[str, int]
  alpha_pattern: Mapping[str, float]

  def ranks(self, modules: Sequence[str]) -> dict[str, int]:
    """Rank of each module."""
    found = self._matched('rank_pattern', modules)
    return {module: found.get(module, self.rank) for module in modules}

  def scales(self, modules: Sequence[str]) -> dict[str, float]:
    """What multiplies B A x in each module."""
    ranks = self.ranks(modules)
    alphas = self._matched('alpha_pattern', modules)
    return {
        module: alphas.get(module, self.alpha)
        / (math.sqrt(rank) if self.use_rslora else rank)
        for module, rank in ranks.items()
    }

  def _matched(self, field: str, modules: Sequence[str]) -> dict[str, Any]:
    """Values of modules, as PEFT finds them: the first that matches the end.

    The expressions are a stranger's, so RE2 matches them, in linear time.

    Raises:
      errors.UserError: For an expression that RE2 does not know, and for so
        many that they take seconds.
    """
    patterns: Mapping[str, Any] = getattr(self, field)
    if not patterns or not modules:
      return {}
    gin_files.import_tensorflow()
    import tensorflow as tf

    found: dict[str, Any] = {}
    end = time.process_time() + _MAX_SECONDS
    for pattern, value in patterns.items():
      try:
        matches = tf.strings.regex_full_match(
            list(modules), f'(.*\\.)?({pattern})'
        )
      except tf.errors.InvalidArgumentError as error:
        raise refused(
            self.file, field, pattern, 'must be a regular expression'
        ) from error
      if time.process_time() > end:
        raise refused(
            self.file, field, patterns, f'takes over {_MAX_SECONDS:.0f} seconds'
        )
      for module, match in zip(modules, matches.numpy(), strict=True):
        if match:
          found.setdefault(module, value)
    return found


def refused(
    file: Path, field: str, value: Any, why: str, remedy: str = ''
) -> errors.UserError:
  """The error of a field; its `where` is the field."""
  return errors.UserError(
      f'{field} of {file} is {reprlib.repr(value)}, and {why}.', where=field,
      remedy=remedy,
  )


def check_names(file: Path, config: Any) -> None:
  """Checks that `re`, which backtracks, is given nothing but names to match.

  That is what our exports write: names of modules, escaped, with | in between.

  Args:
    file: The file, for messages.
    config: What it holds, or a part of it.

  Raises:
    errors.UserError: For any other expression.
  """
  parts = config.items() if isinstance(config, dict) else []
  for field, value in parts:
    if field in _MATCHED and value is not None:
      for text in value if isinstance(value, (list, dict)) else [value]:
        if not isinstance(text, str) or not _NAMES.fullmatch(text):
          raise refused(
              file, field, text,
              'only names of modules, joined by |, are verified'
          )
    for part in value if isinstance(value, list) else [value]:
      check_names(file, part)


def read(folder: Path) -> LoraConfig:
  """Reads and checks `adapter_config.json`.

  Raises:
    errors.UserError: If there is none, or it holds anything that is not
      understood.
  """
  file = folder / folders.ADAPTER_CONFIG
  if not file.is_file():
    raise errors.UserError(
        f'{folder} is no PEFT folder: it has no {file.name}.', where=folder
    )
  config = folders.read_json(file)
  _check_fields(file, config)
  return LoraConfig(
      file,
      integer(file, 'r', config.get('r', 8)),
      number(file, 'lora_alpha', config.get('lora_alpha', 8)),
      bool(config.get('use_rslora')),
      _patterns(file, 'rank_pattern', config, integer),
      _patterns(file, 'alpha_pattern', config, number),
  )


def _check_fields(file: Path, config: Mapping[str, Any]) -> None:
  """Raises errors.UserError for the first field that is not understood."""
  if config.get('peft_type') != 'LORA':
    raise refused(
        file, 'peft_type', config.get('peft_type'),
        'only LORA becomes an expert',
    )
  init = config.get('init_lora_weights', True)
  if type(init) not in (bool, str) or init not in _PLAIN_INITS:
    raise refused(
        file, 'init_lora_weights', init,
        'only LoRAs of an unchanged base become experts', _CONVERT,
    )
  if config.get('bias', 'none') != 'none':
    raise refused(file, 'bias', config['bias'], 'experts have no bias')
  if type(config.get('use_rslora', False)) not in (bool, type(None)):
    raise refused(
        file, 'use_rslora', config['use_rslora'], 'must be true or false'
    )
  for field in ('target_modules', 'exclude_modules'):
    modules = config.get(field)
    if not isinstance(modules, (str, list, type(None))) or (
        isinstance(modules, list)
        and not all(isinstance(x, str) for x in modules)
    ):
      raise refused(file, field, modules, 'must be text or a list of texts')
  check_others(
      file, config, _READ | _NO_MATTER, 'experts have no such thing',
      'Train the LoRA without it.',
  )


def check_others(
    file: Path, config: Mapping[str, Any], known: Collection[str], why: str,
    remedy: str,
) -> None:
  """Raises errors.UserError for a field that is not known and not empty."""
  for field in config.keys() - known:
    if config[field] not in (None, False, '', [], {}):
      raise refused(
          file, reprlib.repr(field).strip("'"), config[field], why, remedy
      )


def integer(file: Path, field: str, value: Any) -> int:
  """A whole number, checked; errors as of `refused`."""
  if type(value) is not int or not 1 <= value <= _MAX_RANK:
    raise refused(
        file, field, value, f'must be a whole number from 1 to {_MAX_RANK}'
    )
  return value


def number(file: Path, field: str, value: Any) -> float:
  """A number above zero, checked; errors as of `refused`."""
  if type(value) not in (int, float) or not 0 < value <= _MAX_ALPHA:
    raise refused(
        file, field, value,
        f'must be a number above 0, of at most {_MAX_ALPHA:.0f}',
    )
  return float(value)


def _patterns(file, field, config, check) -> dict[str, Any]:
  """Checked values by regular expression."""
  patterns = config.get(field) or {}
  if not isinstance(patterns, dict):
    raise refused(file, field, patterns, 'must be an object')
  for pattern in patterns:
    if not _PATTERN.fullmatch(pattern):
      raise refused(
          file, field, pattern, 'must be a short regular expression of names '
          'of modules, without counted repetition, lookaround and references'
      )
  return {key: check(file, field, value) for key, value in patterns.items()}
