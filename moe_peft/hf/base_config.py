# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the readers of `config.json` share, and the gin file of a base."""

from collections.abc import Mapping, Sequence
from typing import Any

from moe_peft import errors

FILE = 'config.json'
HfConfig = Mapping[str, Any]


def unsupported(field: str, value: Any, supported: str) -> errors.UserError:
  """The error of a field whose value our models do not compute."""
  return errors.UserError(
      f'{FILE} has {field} {value!r}, which cannot be imported.', where=field,
      remedy=f'Take a model that has {supported}.',
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
  for name in names:
    integer(name, config[name])
  return {ours: config[theirs] for theirs, ours in names.items()}


def integer(field: str, value: Any, minimum: int = 1) -> int:
  """Returns the value; raises errors.UserError if it is another thing."""
  if type(value) is not int or value < minimum:
    raise unsupported(field, value, f'an integer of at least {minimum} there')
  return value


def to_gin(
    architecture: str,
    config: Any,
    fields: Sequence[str],
    imports: Sequence[str],
    vocabulary: Sequence[str],
) -> str:
  """Returns a gin file of a model, like those under gin/models/.

  Args:
    architecture: 't5' or 'llama': a module of models/ and a gin file.
    config: The model's configuration.
    fields: Its fields that are bound.
    imports: Import statements that the vocabulary needs.
    vocabulary: Bindings of the vocabulary.
  """
  return '\n'.join([
      '# Written by `python -m moe_peft hf import`.',
      '# Provides: MODULE, MODEL, VOCABULARY.',
      '# Requires: ADAPTER_RULES, LOSS_FACTORS.',
      'from __gin__ import dynamic_registration',
      '',
      *imports,
      f'from moe_peft.models import {architecture}',
      '',
      f"include 'gin/models/{architecture}_architecture.gin'",
      '',
      *vocabulary,
      f'SCAN_LAYERS = {config.scan_layers}',
      f'{architecture}.{type(config).__name__}:',
      *(f'  {name} = {getattr(config, name)!r}' for name in fields),
      '',
  ])
