# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The classifier of an X-LoRA folder of PEFT that somebody else has made.

As of LoRAs (`lora_config.py`), every field is either read, or known to change
nothing, or empty; anything else is refused by name. The fields are those of
peft 0.21 (`tuners/xlora/config.py`).
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from moe_peft import errors
from moe_peft.hf import folders
from moe_peft.hf import lora_config
from moe_peft.training import tensor_files

KIND = 'XLORA'
# Values that fields must have, which are PEFT's defaults, and why.
_FIXED = {
    'enable_softmax': (True, 'weights of experts are those of a softmax here'),
    'enable_softmax_topk': (
        False, 'there is no second softmax over selected experts here',
    ),
    'layerwise_scalings': (
        False, 'only one set of weights for all layers is read',
    ),
    'scaling_pass_value': (0, 'the first pass has no experts here'),
    'use_trainable_adapters': (
        False, 'PEFT does not save experts that trained with the classifier',
    ),
}
_READ = {
    'peft_type', 'hidden_size', 'adapters', 'xlora_depth', 'xlora_size',
    'xlora_dropout_p', 'softmax_temperature', 'top_k_lora',
    'global_scaling_weight',
}
_NO_MATTER = {
    'auto_mapping', 'base_model_name_or_path', 'revision', 'task_type',
    'inference_mode', 'peft_version',
}
_WITHOUT = (
    'Give the folders of its experts with --from, one by one: then the '
    'classifier is left out.'
)


@dataclasses.dataclass(frozen=True)
class Classifier:
  """What weighs the experts of an X-LoRA.

  Attributes:
    matrices: Kernel <float32>[in, out] and bias <float32>[out] of each layer.
    dropout: Rate behind all but the last one.
    temperature: Divides the logits.
    num_selected: How many experts a token keeps; None: all.
    scale: Multiplies what all experts add.
  """

  matrices: Sequence[tuple[np.ndarray, np.ndarray]]
  dropout: float = 0.0
  temperature: float = 1.0
  num_selected: int | None = None
  scale: float = 1.0


def scopes(depth: int, dropout: float) -> list[str]:
  """Where the tensors of each layer are; PEFT counts ReLU and dropout too."""
  step = 3 if dropout else 2
  return [
      f'base_model.internal_xlora_classifier.layers.{index * step}'
      for index in range(depth)
  ]


def read(folder: Path, width: int) -> Classifier:
  """Reads and checks the classifier of an X-LoRA.

  Args:
    folder: The folder.
    width: Features of the base's hidden states.

  Raises:
    errors.UserError: If it computes anything that is not understood, or is one
      of another base.
  """
  file = folder / folders.ADAPTER_CONFIG
  config = folders.read_json(file)
  num_experts = _check_fields(file, config)
  whole = lambda field, default: lora_config.integer(
      file, field, config.get(field, default)
  )
  depth, hidden = whole('xlora_depth', 1), whole('xlora_size', 2048)
  if whole('hidden_size', 4096) != width:
    raise lora_config.refused(
        file, 'hidden_size', config.get('hidden_size'),
        f'the base has {width} features', 'Give --base the one of the X-LoRA.',
    )
  dropout = _rate(file, config.get('xlora_dropout_p', 0.2))
  selected = config.get('top_k_lora')
  if selected is not None and whole('top_k_lora', None) > num_experts:
    raise lora_config.refused(
        file, 'top_k_lora', selected, f'there are {num_experts} experts'
    )
  number = lambda field: lora_config.number(file, field, config.get(field, 1))
  sizes = [width, *[hidden] * (depth - 1), num_experts]
  return Classifier(
      _matrices(folder, sizes, dropout), dropout,
      number('softmax_temperature'), selected, number('global_scaling_weight'),
  )


def _rate(file: Path, value: Any) -> float:
  """A rate of dropout, checked; errors as of `lora_config.refused`."""
  if type(value) not in (int, float) or not 0 <= value < 1:
    raise lora_config.refused(
        file, 'xlora_dropout_p', value,
        'must be a number of at least 0 and below 1',
    )
  return float(value)


def _check_fields(file: Path, config: Mapping[str, Any]) -> int:
  """Checks all fields that have no range; returns the number of experts."""
  for field, (value, why) in _FIXED.items():
    if config.get(field, value) != value:
      raise lora_config.refused(file, field, config[field], why, _WITHOUT)
  lora_config.check_others(
      file, config, {*_FIXED, *_READ, *_NO_MATTER}, 'is not known', _WITHOUT
  )
  names = list(config['adapters'])
  if len(names) < 2:
    raise lora_config.refused(
        file, 'adapters', names, 'a classifier weighs two or more', _WITHOUT
    )
  if names != [str(index) for index in range(len(names))]:
    raise lora_config.refused(
        file, 'adapters', names, 'PEFT activates experts by their number and '
        'passes over any other name, so they must be "0", "1", ...', _WITHOUT,
    )
  return len(names)


def _matrices(
    folder: Path, sizes: Sequence[int], dropout: float
) -> list[tuple[np.ndarray, np.ndarray]]:
  """The layers of the classifier, whose tensors are all that there is."""
  names = scopes(len(sizes) - 1, dropout)
  shapes: dict[str, tuple[int, ...]] = {}
  for name, size, out in zip(names, sizes, sizes[1:], strict=False):
    shapes |= {f'{name}.weight': (out, size), f'{name}.bias': (out,)}
  found = _tensors(folder, shapes)
  problems = tensor_files.misfits(
      {name: tensors.shapes[there] for name, (tensors, there) in found.items()},
      shapes,
  )
  if problems:
    raise errors.UserError(
        f'The classifier of {folder} is not what its '
        f'{folders.ADAPTER_CONFIG} says ({problems}).', where=folder,
        remedy='Save or fetch the folder again.',
    )
  arrays = {
      name: np.asarray(tensors[there], np.float32)
      for name, (tensors, there) in found.items()
  }
  for name, array in arrays.items():
    if not np.isfinite(array).all():
      raise errors.UserError(
          f'{folder} holds NaN or infinity, in {name}.', where=folder
      )
  return [(arrays[f'{x}.weight'].T, arrays[f'{x}.bias']) for x in names]


def _tensors(
    folder: Path, names: Iterable[str]
) -> dict[str, tuple[folders.Tensors, str]]:
  """Where each tensor is that a folder holds, and its name there.

  `save_pretrained` of peft 0.21 takes the number of a layer, as in `layers.0.`,
  for the name of the expert 0: it saves that layer in the folder `0` beside,
  and leaves the number out.
  """
  tensors = folders.Tensors(folder, 'adapter_model')
  found = {name: (tensors, name) for name in tensors.shapes}
  for name in names:
    scope, number, parameter = name.rsplit('.', 2)
    beside, there = folder / number, f'{scope}.{parameter}'
    if name not in found and (beside / folders.ADAPTER_WEIGHTS).is_file():
      tensors = folders.Tensors(beside, 'adapter_model')
      if there in tensors.shapes:
        found[name] = tensors, there
  return found
