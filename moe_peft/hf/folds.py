# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Mixtures that are one plain adapter: constant weights, or one expert."""

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

import numpy as np

from moe_peft.hf import sites as sites_lib

_PLAIN = {'low_rank': 'LoRA', 'vector': 'IA3'}


def plain(
    site: sites_lib.AdaptedSite, tensors: Mapping[str, np.ndarray],
    **options: Any,
) -> sites_lib.AdaptedSite:
  """The site with one expert of these arrays, a LoRA or an (IA)^3."""
  spec = {k: v for k, v in site.spec.items() if k != 'always_on'}
  return dataclasses.replace(
      site,
      method=_PLAIN.get(spec['kind'], site.method),
      spec={**spec, 'num_experts': 1, 'router': None, 'num_heads': 1, **options}
      | ({'shared_a': False} if spec['kind'] == 'low_rank' else {}),
      tensors={k: np.asarray(v, np.float32) for k, v in tensors.items()},
  )


def weighted(
    site: sites_lib.AdaptedSite, gates: np.ndarray, rank: int | None = None
) -> sites_lib.AdaptedSite:
  """The one LoRA or (IA)^3 that low-rank or vector experts of constant weights
  are.

  Args:
    site: The experts.
    gates: <float>[num_experts].
    rank: Largest rank of the result, the best approximation; None: exact.
  """
  if site.spec['kind'] == 'vector':
    scaling = site.tensors['scaling'].astype(np.float64)
    mean = gates @ scaling
    if site.spec['residual']:
      mean = 1 + gates @ (scaling - 1)
    return plain(site, {'scaling': mean[None]})
  lora_a, lora_b = site.tensors['lora_a'], site.tensors['lora_b']
  if len(lora_b) == 1 < len(lora_a):  # AdaMix: experts share it.
    lora_a, gates = np.einsum('e,eir->ir', gates, lora_a)[None], np.ones(1)
  elif len(lora_a) == 1:
    lora_b, gates = np.einsum('e,ero->ro', gates, lora_b)[None], np.ones(1)
  scale = np.asarray(gates) * (site.spec['alpha'] / site.spec['rank'])
  down = np.concatenate(list(lora_a), axis=1)
  up = np.concatenate(list(lora_b * scale[:, None, None]), axis=0)
  if site.spec.get('always_on'):  # One more pair, of weight 1.
    shared = (site.tensors[f'shared_{x}'][0] for x in ('lora_a', 'lora_b'))
    more_down, more_up = shared
    down = np.concatenate([down, more_down], axis=1)
    up = np.concatenate([
        up, more_up * (site.spec['alpha'] / site.spec['rank'])
    ])
  if rank is not None and rank < down.shape[1]:
    down, up = _truncate(down.astype(np.float64), up.astype(np.float64), rank)
  full = down.shape[1]
  scaled = {k: x for k, x in site.tensors.items() if k.startswith('column_')}
  return plain(
      site, {'lora_a': down[None], 'lora_b': up[None], **scaled}, rank=full,
      alpha=float(full),
  )


def _truncate(down, up, rank):
  """Best approximation of `down @ up` of a rank, without building it."""
  down_q, down_r = np.linalg.qr(down)
  up_q, up_r = np.linalg.qr(up.T)
  u, s, v = np.linalg.svd(down_r @ up_r.T)
  root = np.sqrt(s[:rank])
  return down_q @ u[:, :rank] * root, (up_q @ v[:rank].T * root).T


def experts(
    site: sites_lib.AdaptedSite, index: int
) -> Iterator[sites_lib.AdaptedSite]:
  """One expert alone; several sites if it is a block."""
  if site.spec.get('always_on'):
    yield weighted(site, np.eye(site.spec['num_experts'])[index])
    return
  # What all experts share has one entry, which each of them gets. Columns (of
  # DoRA) are outputs of the layer, and no experts.
  tensors = {
      name: array[index : index + 1]
      if len(array) > 1 and not name.startswith('column_') else array
      for name, array in site.expert_tensors.items()
  }
  if site.spec['kind'] != 'block':
    yield plain(site, tensors)
    return
  for name, layer in site.block_layers.items():
    pair = {x: tensors[f'{name}_{x}'] for x in ('lora_a', 'lora_b')}
    in_features, out_features = (
        pair['lora_a'].shape[1], pair['lora_b'].shape[2]
    )
    path = f'{site.path.rpartition("/")[0]}/{name}'
    spec = sites_lib.low_rank(
        rank=site.spec['rank'], alpha=site.spec['alpha'],
        in_features=in_features, out_features=out_features, **layer.part,
    )
    yield sites_lib.AdaptedSite(path, 'LoRA', spec, pair, layer)


def simplest(
    site: sites_lib.AdaptedSite
) -> Iterator[sites_lib.AdaptedSite]:
  """The site itself, or the plain adapters that it is."""
  router, count = site.spec['router'], site.spec['num_experts']
  if router and router['selection'] == 'uniform':
    found = [weighted(site, np.full(count, 1.0 / count))]
  elif count == 1 and site.spec.get('always_on'):
    found = [weighted(site, np.ones(1))]
  elif count == 1 and site.spec['kind'] == 'block':
    found = experts(site, 0)
  else:
    found = [site]
  for one in found:
    yield dataclasses.replace(one, method=site.method)
