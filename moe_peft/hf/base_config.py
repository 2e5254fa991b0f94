# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the readers of `config.json` share, and the gin file of a base."""

from collections.abc import Mapping, Sequence
import dataclasses
import reprlib
from typing import Any

import numpy as np

from moe_peft import errors
from moe_peft.hf import folders

FILE = 'config.json'
HfConfig = Mapping[str, Any]


def unsupported(
    field: str, value: Any, supported: str, file: str = FILE
) -> errors.UserError:
  """The error of a field whose value our models do not compute."""
  return errors.UserError(
      f'{file} has {field} {reprlib.repr(value)}, which cannot be imported.',
      where=field, remedy=f'Take a model that has {supported}.',
  )


def sizes(config: HfConfig, names: Mapping[str, str]) -> dict[str, int]:
  """Reads the sizes of a model; `names` are our fields by those of the file.

  Raises:
    errors.UserError: If one of them is missing or not a positive integer.
  """
  missing = [name for name in names if name not in config]
  if missing:
    raise errors.UserError(
        f'{FILE} lacks {", ".join(missing)}.', where=FILE,
        remedy='Fetch the folder again.',
    )
  return {ours: integer(x, config[x]) for x, ours in names.items()}


def integer(
    field: str,
    value: Any,
    minimum: int = 1,
    maximum: int = 2**31 - 1,
    file: str = FILE,
) -> int:
  """Returns the value; raises errors.UserError if it is another thing."""
  if type(value) is not int or not minimum <= value <= maximum:
    raise unsupported(
        field, value, f'an integer from {minimum} to {maximum} there', file
    )
  return value


def number(field: str, value: Any, minimum: float = 0.0) -> float:
  """Returns the value as a float; raises errors.UserError if it is none."""
  if type(value) not in (int, float) or not minimum <= value < 1e30:
    raise unsupported(field, value, f'a number of at least {minimum} there')
  return float(value)


def boolean(field: str, value: Any) -> bool:
  """Returns the value; raises errors.UserError if it is another thing."""
  if type(value) is not bool:
    raise unsupported(field, value, 'true or false there')
  return value


@dataclasses.dataclass(frozen=True)
class Fields:
  """The fields of a file, typed; null is like a field that is not there."""

  config: HfConfig

  def get(self, name: str, default: Any = None) -> Any:
    value = self.config.get(name)
    return default if value is None else value

  def integer(
      self, name: str, default: int | None = None, **bounds: int
  ) -> int:
    return integer(name, self.get(name, default), **bounds)

  def number(
      self, name: str, default: float | None = None, minimum: float = 0.0
  ) -> float:
    return number(name, self.get(name, default), minimum)

  def boolean(self, name: str, default: bool = False) -> bool:
    return boolean(name, self.get(name, default))


def check_fixed(config: HfConfig, fixed: HfConfig) -> None:
  """Raises errors.UserError for fields that are there with other values."""
  for name, value in fixed.items():
    given = config.get(name, value)
    if given != value or isinstance(given, bool) != isinstance(value, bool):
      raise unsupported(name, given, f'{value!r} there')


def check_depth(
    tensors: folders.Tensors, field: str, num_layers: int
) -> None:
  """Checks a number of layers before anything is made for each of them.

  Raises:
    errors.UserError: If there are fewer tensors than layers.
  """
  if num_layers > len(tensors.shapes):
    raise errors.UserError(
        f'{FILE} has {field} {num_layers}, and the files hold '
        f'{len(tensors.shapes)} tensors.', where=field,
        remedy='Fetch the folder again.',
    )


def tied(tensors: folders.Tensors, embedding: str, logits: str) -> str:
  """The name of the embedding that is the output layer, too.

  Files have it by one of the two names, or by both.

  Raises:
    errors.UserError: If the two differ, which transformers 4 and 5 take for
      different models.
  """
  found = [name for name in (embedding, logits) if name in tensors.shapes]
  if len(found) == 2 and not np.array_equal(*(tensors[x] for x in found)):
    raise errors.UserError(
        f'{FILE} ties the output layer to the embedding, and {logits} differs '
        f'from {embedding}.', where='tie_word_embeddings',
        remedy=f'Write false there to keep {logits}, as transformers 5 reads '
        'the folder; or take the tensor out, which transformers 4 leaves '
        'unread.',
    )
  return next(iter(found), embedding)


def to_gin(
    architecture: str,
    config: Any,
    fields: Sequence[str],
    imports: Sequence[str],
    bindings: Sequence[str],
) -> str:
  """Returns a gin file of a model, like those under gin/models/.

  Args:
    architecture: 't5' or 'decoder', a gin file.
    config: The model's configuration.
    fields: Its fields that are bound.
    imports: Import statements that the bindings need.
    bindings: Bindings of the vocabulary, and what else the model needs.
  """
  kind = type(config)
  module = kind.__module__.rpartition('.')[2]
  return '\n'.join([
      '# Written by `python -m moe_peft hf import`.',
      '# Provides: MODULE, MODEL, VOCABULARY.',
      '# Requires: ADAPTER_RULES, LOSS_FACTORS.',
      'from __gin__ import dynamic_registration',
      '',
      *imports,
      f'from moe_peft.models import {module}',
      '',
      f"include 'gin/models/{architecture}_architecture.gin'",
      '',
      *bindings,
      f'SCAN_LAYERS = {config.scan_layers}',
      f'{module}.{kind.__name__}:',
      *(f'  {name} = {getattr(config, name)!r}' for name in fields),
      '',
  ])


def tokenizer_bindings(
    file: str, ends: Sequence[int], num_ids: int
) -> list[str]:
  """Bindings of a `vocabularies.TokenizerVocabulary`.

  Args:
    file: Path of a `tokenizer.json`; empty if whoever trains must name it.
    ends: The ids that end a sequence; empty if whoever trains must say it.
    num_ids: Rows of the model's embedding.
  """
  required = '%gin.REQUIRED'
  return [
      f'VOCABULARY_FILE = {repr(file) if file else required}',
      'VOCABULARY = @vocabularies.TokenizerVocabulary()',
      'vocabularies.TokenizerVocabulary:',
      '  tokenizer_file = %VOCABULARY_FILE',
      f'  eos_id = {ends[0] if ends else required}',
      f'  stop_ids = {tuple(ends[1:])}',
      f'  num_ids = {num_ids}',
  ]
