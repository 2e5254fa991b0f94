# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapters without a router become part of the weights."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses

import numpy as np

from moe_peft import errors
from moe_peft.hf import lazy_arrays
from moe_peft.hf import networks
from moe_peft.hf import sites as sites_lib
from moe_peft.hf import trained as trained_lib


def merged_tensors(
    trained: trained_lib.Trained, sites: Sequence[sites_lib.AdaptedSite]
) -> dict[str, lazy_arrays.LazyArray]:
  """`Trained.separate_tensors` with the adapters `sites` in them, by name.

  Raises:
    errors.UserError: If an adapter depends on the token.
  """
  if not all(site.linear for site in sites):
    raise errors.UserError(
        f'{sites_lib.methods(sites)} cannot be merged: what it adds depends '
        'on the token otherwise than by a matrix, and a mean of the experts '
        'computes something else.', where='--format merged',
        remedy='Use --format peft (one import line) or full '
        '(trust_remote_code), or --collapse FILE.jsonl for an ordinary LoRA '
        'with a measured loss.',
    )
  tensors = trained.separate_tensors()
  for site in sites:
    for name, change in _changes(site):
      if name not in tensors:  # A layer without a bias.
        continue
      old = tensors[name]
      tensors[name] = dataclasses.replace(
          old,
          read=lambda read=old.read, change=change: change(read()),
      )
  return tensors


Change = Callable[[np.ndarray], np.ndarray]


def _changes(site: sites_lib.AdaptedSite) -> Iterator[tuple[str, Change]]:
  """Yields names of Hugging Face tensors that change, and how.

  Weights are [out, in].
  """
  if site.spec['kind'] == 'low_rank':
    scale = np.float32(site.spec['alpha'] / site.spec['rank'])
    lora_a, lora_b = site.tensors['lora_a'][0], site.tensors['lora_b'][0]
    name = f'{site.layer.source}.weight'
    columns = 1 + site.tensors.get('column_scale', np.zeros(1, np.float32))
    yield name, lambda w: w * columns[:, None] + scale * (lora_a @ lora_b).T
    return
  vector = site.tensors['scaling'][0]
  layer, at_input = scaled_layer(site)
  if at_input:
    yield f'{layer.source}.weight', lambda w: w * vector
    return
  yield f'{layer.source}.weight', lambda w: w * vector[:, None]
  yield f'{layer.source}.bias', lambda b: b * vector


def scaled_layer(site: sites_lib.AdaptedSite) -> tuple[networks.Layer, bool]:
  """Returns the dense layer that a vector scales, and whether at its inputs.

  Scaling the activated branch of an MLP is scaling the inputs of its last
  layer: a gated MLP multiplies the branches.
  """
  if site.layer.scales is not None:
    return site.layer.scales, True
  return site.layer, site.spec['site_input']


def merged_params(
    trained: trained_lib.Trained, sites: Sequence[sites_lib.AdaptedSite]
) -> dict[str, np.ndarray]:
  """The same as flat parameters of the bare base."""
  tensors = merged_tensors(trained, sites)
  return {
      entry.path: entry.convert([tensors[x].load() for x in entry.sources])
      for entry in trained.network.entries(trained.config, trained.layout)
  }
