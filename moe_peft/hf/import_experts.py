# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""PEFT LoRA folders as the experts of a MoLoRA.

With several folders each becomes one expert, to train only the router over
them (`TRAINABLE_REGEX = '.*/router/.*'`), or everything.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from pathlib import Path
import re
from typing import Any

import numpy as np

from moe_peft import errors
from moe_peft.core import sites as core_sites
from moe_peft.hf import entries
from moe_peft.hf import folders
from moe_peft.hf import lora_config
from moe_peft.hf import networks

_KEY = re.compile(r'base_model\.model\.(.*)\.lora_([AB])\.weight')


@dataclasses.dataclass(frozen=True)
class ImportedExperts:
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
    trains = [
        '# Only the routers learn; remove this line to train the experts too.',
        "TRAINABLE_REGEX = '.*/adapter/router/.*'",
    ]
    return '\n'.join([
        '# Written by `python -m moe_peft hf import --experts`.',
        "include 'gin/methods/molora.gin'",
        '',
        f'SITES = {self.sites!r}',
        f'NUM_EXPERTS = {self.num_experts}',
        f'RANK = {self.rank}',
        f'ALPHA = {self.alpha}',
        *(trains if self.num_experts > 1 else ()),  # One expert has no router.
        '',
    ])


def read(
    sources: Sequence[Path], config: Any, kind: str = ''
) -> ImportedExperts:
  """Reads PEFT LoRA folders.

  Args:
    sources: Folders with `adapter_config.json`, trained on the same base.
    config: The base.
    kind: Its `model_type`.

  Raises:
    errors.UserError: If a folder holds no plain LoRA, or one for another base.
  """
  network = networks.of(config)
  shapes = network.module_shapes(config, kind)
  adapters = [read_folder(Path(source), shapes) for source in sources]
  rank = max(down.shape[0] for a in adapters for down, _, _ in a.values())
  first = next(iter(adapters[0].values()))
  alpha = float(first[2] * rank)
  params: dict[str, np.ndarray] = {}
  used = {module for adapter in adapters for module in adapter}
  for path, layer in network.layers(config, kind).items():
    if layer.module in used:
      found = [adapter.get(layer.module) for adapter in adapters]
      pairs = _stacked(found, shapes[layer.module], layer.rows, rank, alpha)
      scope = f'{path}/{core_sites.ADAPTER_SCOPE}'
      params |= dict(zip(
          (f'{scope}/lora_a', f'{scope}/lora_b'), pairs, strict=True
      ))
  if config.scan_layers:
    params = stack_layers(params, config)
  layers = {path.rsplit('/', 2)[0] for path in params}
  sites = '|'.join(f'(.*/)?{re.escape(layer)}' for layer in sorted(layers))
  return ImportedExperts(params, len(adapters), rank, alpha, sites)


def _stacked(found, shape, rows, rank, alpha) -> tuple[np.ndarray, np.ndarray]:
  """The experts of a layer, whose outputs are `rows` of the module's.

  An expert that is None leaves the layer as it is.
  """
  out_features, in_features = shape
  none = np.zeros((0, in_features)), np.zeros((out_features, 0)), 1.0
  lora_a, lora_b = [], []
  for down, up, scale in (x or none for x in found):
    missing = ((0, rank - len(down)), (0, 0))
    up = up[slice(*(rows or (None,)))] * np.float32(scale * rank / alpha)
    lora_a.append(np.pad(down, missing).T)
    lora_b.append(np.pad(up.T, missing))
  return np.stack(lora_a, dtype=np.float32), np.stack(lora_b, dtype=np.float32)


def read_folder(
    source: Path, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
  """Reads one PEFT LoRA folder.

  Args:
    source: The folder.
    shapes: Shapes [out, in] of the modules of the base.

  Returns:
    `{module: (A [rank, in], B [out, rank], scale)}`.

  Raises:
    errors.UserError: If it holds no plain LoRA, or one for another base.
  """
  refuse = lambda what: errors.UserError(f'{source} {what}', where=source)
  config = lora_config.read(source)
  halves: dict[str, dict[str, np.ndarray]] = {}
  tensors = folders.Tensors(source, 'adapter_model')
  for name in tensors.shapes:
    match = _KEY.fullmatch(name)
    if not match:
      raise refuse(f'holds {name}, which is no tensor of a plain LoRA.')
    array = np.asarray(tensors[name], np.float32)
    if not np.isfinite(array).all():
      raise refuse(f'holds NaN or infinity, in {name}.')
    halves.setdefault(match[1], {})[match[2]] = array
  if not halves:
    raise refuse('holds no tensors.')
  ranks, scales = config.ranks(list(halves)), config.scales(list(halves))
  adapter = {}
  for module, pair in halves.items():
    if len(pair) != 2:
      raise refuse(f'lacks lora_A or lora_B of {module}.')
    down, up, rank = pair['A'], pair['B'], ranks[module]
    if down.ndim != 2 or up.ndim != 2 or {len(down), up.shape[1]} != {rank}:
      raise refuse(
          f'has rank {rank} for {module}, whose lora_A is {down.shape} and '
          f'lora_B {up.shape}.'
      )
    given = (up.shape[0], down.shape[1])
    if given != shapes.get(module):
      raise errors.UserError(
          f'{source} was trained on another base: it adapts {module} of shape '
          f'{given}, and the base has {shapes.get(module, "none")}.',
          where=source,
      )
    adapter[module] = (down, up, scales[module])
  return adapter


def stack_layers(
    params: Mapping[str, np.ndarray], config: Any
) -> dict[str, np.ndarray]:
  """Moves layers to axis 1 of a scanned stack; missing ones become zeros."""
  stacked: dict[str, dict[int, np.ndarray]] = {}
  for path, array in params.items():
    stack, layer, rest = path.split('/', 2)
    layers = stacked.setdefault(f'{stack}/{stack}/{rest}', {})
    layers[int(layer.removeprefix('layers_'))] = array
  result = {}
  for path, layers in stacked.items():
    stack = path.partition('/')[0]
    number = getattr(config, f'num_{stack}_layers', None) or config.num_layers
    zero = np.zeros_like(next(iter(layers.values())))
    result[path] = np.stack(
        [layers.get(i, zero) for i in range(number)], entries.SCAN_AXIS
    )
  return result
