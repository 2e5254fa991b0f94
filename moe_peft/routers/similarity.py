# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""How alike the experts of a site are: cosines of what they add."""

from collections.abc import Mapping
import functools
import re
from typing import Any

import numpy as np

from moe_peft.core import sites
from moe_peft.core import trainable
from moe_peft.models import stack

_by_layer = functools.partial(trainable.by_layer, axis=stack.PARAM_SCAN_AXIS)
# The low-rank halves of an expert's update; MixLoRA has a pair for each matrix,
# `wi_0_lora_a` and so on, and MoDULA's `shared_` one is of no expert. A
# bottleneck is taken without its activation.
_HALVES = {'lora_a': 'lora_b', 'down': 'up'}
_FIRST_HALF = re.compile('(?!shared_)(?P<prefix>.*)(?P<half>lora_a|down)')


def by_site(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Cosines between the experts of each site.

  Args:
    params: Flat parameters.

  Returns:
    <float64>[num_experts, num_experts] by site. Of LoRA experts it is that of
    the updates `lora_a[e] @ lora_b[e]`, of vectors that of `scaling[e] - 1`.
    NaN for an expert that adds nothing.
  """
  grams: dict[str, np.ndarray] = {}
  for path, value in params.items():
    site, scope, name = path.partition(f'/{sites.ADAPTER_SCOPE}/')
    if not scope:  # The base, whose kernels need not be arrays.
      continue
    value = np.asarray(value, np.float64)
    if name == 'scaling':
      layers = _by_layer(site, value)
      new = {s: (x - 1) @ (x - 1).T for s, x in layers.items()}
    elif found := _FIRST_HALF.fullmatch(name):
      other = f'{found["prefix"]}{_HALVES[found["half"]]}'
      up = np.asarray(params[f'{site}{scope}{other}'], np.float64)
      ups = _by_layer(site, up)
      new = {s: gram(x, ups[s]) for s, x in _by_layer(site, value).items()}
    else:
      continue
    for layer, matrix in new.items():
      grams[layer] = grams.get(layer, 0.0) + matrix
  return {site: cosine(g) for site, g in grams.items() if len(g) > 1}


def gram(downs: np.ndarray, ups: np.ndarray) -> np.ndarray:
  """Inner products of low-rank updates; none of the updates is built.

  <A_e B_e, A_f B_f> = tr(B_e^T A_e^T A_f B_f)
                     = sum((A_e^T A_f) * (B_e B_f^T)), matrices of rank x rank.

  Args:
    downs: <float>[num_experts or 1, in, rank].
    ups: <float>[num_experts or 1, rank, out].

  Returns:
    <float>[num_experts, num_experts].
  """
  inner = np.einsum('eir,fis->efrs', downs, downs, optimize=True)
  outer = np.einsum('ero,fso->efrs', ups, ups, optimize=True)
  return (inner * outer).sum(axis=(2, 3))


def cosine(matrix: np.ndarray) -> np.ndarray:
  """Cosines from inner products; NaN where a norm is zero."""
  norm = np.sqrt(np.diag(matrix))
  norm = np.where(norm > 0, norm, np.nan)
  return np.clip(matrix / norm[:, None] / norm[None, :], -1, 1)
