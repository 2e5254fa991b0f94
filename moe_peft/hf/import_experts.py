# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""PEFT LoRA folders as the experts of a MoLoRA.

With several folders each becomes one expert, to train only the router over
them (`TRAINABLE_REGEX = '.*/router/.*'`), or everything.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from pathlib import Path
import re
from typing import Any

import numpy as np

from moe_peft import errors
from moe_peft.core import inject
from moe_peft.hf import folders
from moe_peft.hf import names
from moe_peft.models import t5

_KEY = re.compile(r'base_model\.model\.(.*)\.lora_([AB])\.weight')


@dataclasses.dataclass(frozen=True)
class Experts:
  """Experts of a MoLoRA.

  Attributes:
    params: Flat parameters: `lora_a` [num_experts, in, rank] and `lora_b`
      [num_experts, rank, out] of each adapted layer.
    num_experts: Number of experts.
    rank: Largest rank; experts of a lower one are filled with zeros.
    alpha: The update is scaled by `alpha / rank`; differences between the
      folders are in `lora_b`.
    sites: Regular expression of the adapted layers, for SITES.
  """

  params: Mapping[str, np.ndarray]
  num_experts: int
  rank: int
  alpha: float
  sites: str

  def to_gin(self) -> str:
    """Returns a gin file to be included after `gin/methods/molora.gin`."""
    return '\n'.join([
        '# Written by `python -m moe_peft hf import --experts`.',
        "include 'gin/methods/molora.gin'",
        '',
        f'SITES = {self.sites!r}',
        f'NUM_EXPERTS = {self.num_experts}',
        f'RANK = {self.rank}',
        f'ALPHA = {self.alpha}',
        '# Only the routers learn; remove this line to train the experts too.',
        "TRAINABLE_REGEX = '.*/adapter/router/.*'",
        '',
    ])


def read(sources: Sequence[Path], config: t5.T5Config) -> Experts:
  """Reads PEFT LoRA folders.

  Args:
    sources: Folders with `adapter_config.json`, trained on the same base.
    config: The base.

  Raises:
    errors.UserError: If a folder holds no plain LoRA, or one for another base.
  """
  adapters = [_read_one(Path(source)) for source in sources]
  modules = sorted({module for adapter in adapters for module in adapter})
  shapes = _layer_shapes(config)
  for source, adapter in zip(sources, adapters, strict=True):
    for module, (down, up, _) in adapter.items():
      given = (up.shape[0], down.shape[1])
      if given != shapes.get(module):
        raise errors.UserError(
            f'{source} was trained on another base: it adapts {module} of '
            f'shape {given}, and the base has {shapes.get(module, "none")}.'
        )
  rank = max(d.shape[0] for a in adapters for d, _, _ in a.values())
  first = next(iter(adapters[0].values()))
  alpha = float(first[2] * rank)
  params: dict[str, np.ndarray] = {}
  for module in modules:
    out_features, in_features = shapes[module]
    lora_a = np.zeros((len(adapters), in_features, rank), np.float32)
    lora_b = np.zeros((len(adapters), rank, out_features), np.float32)
    for index, adapter in enumerate(adapters):
      if module not in adapter:
        continue  # This expert leaves the layer as it is.
      down, up, scale = adapter[module]
      lora_a[index, :, : down.shape[0]] = down.T
      lora_b[index, : down.shape[0]] = up.T * np.float32(scale * rank / alpha)
    layer = names.t5x_layer(module)
    params[f'{layer}/{inject.ADAPTER_SCOPE}/lora_a'] = lora_a
    params[f'{layer}/{inject.ADAPTER_SCOPE}/lora_b'] = lora_b
  if config.scan_layers:
    params = _stack(params, config)
  layers = {path.partition(f'/{inject.ADAPTER_SCOPE}/')[0] for path in params}
  sites = '|'.join(f'(.*/)?{re.escape(layer)}' for layer in sorted(layers))
  return Experts(params, len(adapters), rank, alpha, sites)


def _layer_shapes(config: t5.T5Config) -> dict[str, tuple[int, ...]]:
  return {
      source.removesuffix('.weight'): entry.hf_shape
      for entry in names.entries(config, 't5')
      for source in entry.sources
      if len(entry.hf_shape) == 2 and 'relative' not in source
  }


def _read_one(source: Path) -> dict[str, Any]:
  """Returns `{module: (A [r, in], B [out, r], scale)}`."""
  if not (source / folders.ADAPTER_CONFIG).is_file():
    raise errors.UserError(
        f'{source} is no PEFT folder: it has no {folders.ADAPTER_CONFIG}.'
    )
  config = folders.read_json(source / folders.ADAPTER_CONFIG)
  if config.get('peft_type') != 'LORA':
    raise errors.UserError(
        f'{source} holds a {config.get("peft_type")}; only LORA becomes an '
        'expert.'
    )
  if config.get('bias', 'none') != 'none' or config.get('use_dora'):
    raise errors.UserError(
        f'{source} uses bias or DoRA, which MoLoRA experts do not have.'
    )
  halves: dict[str, dict[str, np.ndarray]] = {}
  tensors = folders.Tensors(source, 'adapter_model')
  unknown = [name for name in tensors.shapes if not _KEY.fullmatch(name)]
  if unknown:
    raise errors.UserError(
        f'{source} holds tensors that are not of a plain LoRA: '
        f'{", ".join(unknown[:5])}.'
    )
  for name in tensors.shapes:
    module, half = _KEY.fullmatch(name).groups()
    array = np.asarray(tensors[name], np.float32)
    halves.setdefault(module, {})[half] = array
  adapter = {}
  for module, pair in halves.items():
    if set(pair) != {'A', 'B'}:
      raise errors.UserError(f'{source} lacks lora_A or lora_B of {module}.')
    rank = pair['A'].shape[0]
    alpha = _pattern(config.get('alpha_pattern'), module, config['lora_alpha'])
    scale = alpha / (math.sqrt(rank) if config.get('use_rslora') else rank)
    adapter[module] = (pair['A'], pair['B'], scale)
  if not adapter:
    raise errors.UserError(f'{source} holds no tensors.')
  return adapter


def _pattern(patterns: Mapping[str, Any] | None, module: str, default):
  """Value of a module, as PEFT looks it up: by suffix, as an expression."""
  for pattern, value in (patterns or {}).items():
    if re.match(rf'(.*\.)?({pattern})$', module):
      return value
  return default


def _stack(params, config) -> dict[str, np.ndarray]:
  """Moves layers to axis 1 of a scanned stack, where all layers have one."""
  stacked: dict[str, dict[int, np.ndarray]] = {}
  for path, array in params.items():
    stack, layer, rest = path.split('/', 2)
    key = f'{stack}/{stack}/{rest}'
    stacked.setdefault(key, {})[int(layer.removeprefix('layers_'))] = array
  result = {}
  for path, layers in stacked.items():
    stack = path.partition('/')[0]
    number = getattr(config, f'num_{stack}_layers')
    zero = np.zeros_like(next(iter(layers.values())))
    result[path] = np.stack(
        [layers.get(i, zero) for i in range(number)], names.SCAN_AXIS
    )
  return result
