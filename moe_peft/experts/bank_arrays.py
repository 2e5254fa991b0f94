# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The parameters of a bank: experts in singular form, side by side."""

from collections.abc import Mapping, Sequence
import re

import numpy as np

from moe_peft import errors
from moe_peft.core import sites as core_sites
from moe_peft.experts import bank_base
from moe_peft.experts import bank_experts
from moe_peft.hf import import_experts
from moe_peft.hf import xlora_config
from moe_peft.methods import xlora

Pair = tuple[np.ndarray, np.ndarray]


def singular(down: np.ndarray, up: np.ndarray, rank: int) -> Pair:
  """The same update with orthogonal columns of A and orthonormal rows of B.

  `down @ up = (Q U S) (V^T P^T)`, by QR of both and an SVD of rank x rank
  numbers; the update itself is never built.

  Args:
    down: <float>[in, r].
    up: <float>[r, out].
    rank: Columns of the result, filled with zeros; r or more.

  Returns:
    A <float32>[in, rank], columns by falling singular value, and B
    <float32>[rank, out]; both zero where the singular value is.
  """
  down_q, down_r = np.linalg.qr(down.astype(np.float64))
  up_q, up_r = np.linalg.qr(up.T.astype(np.float64))
  left, sizes, right = np.linalg.svd(down_r @ up_r.T, full_matrices=False)
  # Where the rank is lower, the rest is rounding: directions of noise.
  kept = sizes > sizes[0] * 1e-7 if sizes[0] > 0 else sizes > 0
  sizes, right = sizes * kept, right * kept[:, None]
  missing = rank - len(sizes)
  a = np.pad(down_q @ (left * sizes), ((0, 0), (0, missing)))
  b = np.pad(right @ up_q.T, ((0, missing), (0, 0)))
  return a.astype(np.float32), b.astype(np.float32)


def layers_of(
    experts: Sequence[bank_experts.Expert], base: bank_base.Base
) -> list[str]:
  """The layers that any expert adapts, in the order of the base."""
  used = {path for expert in experts for path in expert.pairs}
  return [path for path in base.layers if path in used]


def in_bank(
    expert: bank_experts.Expert, layers: Sequence[str], base: bank_base.Base,
    rank: int,
) -> dict[str, Pair]:
  """An expert in singular form at all layers; zero where it has none."""
  pairs = {}
  for path in layers:
    if path in expert.pairs:
      pairs[path] = singular(*expert.pairs[path], rank)
      continue
    shape = base.module_shapes[base.layers[path].module]
    start, stop = base.layers[path].rows or (0, shape[0])
    pairs[path] = (
        np.zeros((shape[1], rank), np.float32),
        np.zeros((rank, stop - start), np.float32),
    )
  return pairs


def params(
    experts: Sequence[bank_experts.Expert],
    pairs: Sequence[Mapping[str, Pair]],
    base: bank_base.Base,
) -> dict[str, np.ndarray]:
  """The parameters of `methods.bank.Bank`, in the layout of the base.

  Args:
    experts: The experts.
    pairs: What `in_bank` makes of each.
    base: The base.
  """
  found = flat(experts, pairs)
  if base.config.scan_layers:
    return import_experts.stack_layers(found, base.config)
  return found


def classifier(
    given: xlora_config.Classifier | None
) -> dict[str, np.ndarray]:
  """The parameters of `methods.xlora.Classifier`; none of None."""
  if given is None:
    return {}
  scopes = xlora.scopes(len(given.matrices))
  return {
      f'{scope}/{parameter}': array
      for scope, pair in zip(scopes, given.matrices, strict=True)
      for parameter, array in zip(('kernel', 'bias'), pair, strict=True)
  }


def flat(
    experts: Sequence[bank_experts.Expert], pairs: Sequence[Mapping[str, Pair]]
) -> dict[str, np.ndarray]:
  """The parameters of a bank, by the paths of layers that are not scanned."""
  found: dict[str, np.ndarray] = {}
  columns = [
      name for name in bank_experts.COLUMNS.values()
      if all(name in expert.columns for expert in experts)
  ]
  for path in pairs[0]:
    scope = f'{path}/{core_sites.ADAPTER_SCOPE}'
    found[f'{scope}/lora_a'] = np.stack([x[path][0] for x in pairs])
    found[f'{scope}/lora_b'] = np.stack([x[path][1] for x in pairs])
    for name in columns:
      given = [expert.columns[name].get(path) for expert in experts]
      shapes = {x.shape for x in given if x is not None}
      if len(shapes) != 1 or len(shape := shapes.pop()) != 1:
        raise errors.UserError(
            f'The {name} of the experts do not go together at {path}.',
            where='--from',
            remedy='Train them again, over banks of this base.',
        )
      none = np.zeros(shape, np.float32)
      found[f'{scope}/router/{name}'] = np.stack(
          [none if x is None else x for x in given], axis=1
      )
  return found


def sites(layers: Sequence[str], base: bank_base.Base) -> str:
  """The regular expression of the adapted layers, for SITES."""
  names = {path.rpartition('/')[2] for path in layers}
  same = {
      path for path, layer in base.layers.items()
      if path.rpartition('/')[2] in names and layer.scales is None
  }
  if same == set(layers):
    return f'.*/({"|".join(sorted(names))})'
  if base.config.scan_layers:
    layers = sorted({
        re.sub(r'^(\w+)/layers_\d+/', r'\1/\1/', path) for path in layers
    })
  return '|'.join(f'(.*/)?{re.escape(path)}' for path in layers)
