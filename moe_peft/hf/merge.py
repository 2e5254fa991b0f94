# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapters without a router become part of the weights."""

from collections.abc import Callable
from typing import Any

import numpy as np

from moe_peft import errors
from moe_peft.hf import names
from moe_peft.hf import sites as sites_lib
from moe_peft.hf import trained as trained_lib

# Maps a Hugging Face weight [out, in] to the merged one.
Change = Callable[[np.ndarray], np.ndarray]


def refuse_routed(sites: list[sites_lib.AdaptedSite], what: str) -> None:
  """Raises errors.UserError if an adapter depends on the token."""
  if any(site.routed for site in sites):
    raise errors.UserError(
        f'{sites_lib.methods(sites)} cannot be {what}: which expert acts '
        'depends on the token, and a mean of the experts computes something '
        'else. Use --format peft (one import line) or full '
        '(trust_remote_code), or --collapse data.jsonl for an ordinary LoRA '
        'with a measured loss.'
    )


def merged_tensors(
    trained: trained_lib.Trained, sites: list[sites_lib.AdaptedSite]
) -> dict[str, Any]:
  """Hugging Face tensors with the adapters in them: `{name: (shape, read)}`.

  Args:
    trained: The model.
    sites: Adapters without routers, of this model.
  """
  refuse_routed(sites, 'merged')
  tensors = trained_lib.hf_shapes(trained)
  for site in sites:
    weight, change = _change(site)
    shape, read = tensors[weight]
    tensors[weight] = (
        shape,
        lambda read=read, change=change: change(read()),
    )
  return tensors


def _change(site: sites_lib.AdaptedSite) -> tuple[str, Change]:
  """Returns the weight that changes, and how."""
  module = site.hf_module
  if site.spec['kind'] == 'low_rank':
    scale = np.float32(site.spec['alpha'] / site.spec['rank'])
    lora_a, lora_b = site.tensors['lora_a'][0], site.tensors['lora_b'][0]
    return f'{module}.weight', lambda w: w + scale * (lora_a @ lora_b).T
  vector = site.tensors['scaling'][0]
  module, at_input = scaled_module(site)
  if at_input:
    return f'{module}.weight', lambda w: w * vector
  return f'{module}.weight', lambda w: w * vector[:, None]


def scaled_module(site: sites_lib.AdaptedSite) -> tuple[str, bool]:
  """Returns the dense module that an (IA)^3 vector scales.

  Scaling the activated branch of an MLP is scaling the input of `wo`: a gated
  MLP multiplies the branches.

  Args:
    site: A site with a vector.

  Returns:
    Its name, and whether its inputs are scaled and not its outputs.
  """
  parent, _, name = site.hf_module.rpartition('.')
  if name == 'act':
    return f'{parent}.wo', True
  return site.hf_module, site.spec['site_input']


def merged_params(
    trained: trained_lib.Trained, sites: list[sites_lib.AdaptedSite]
) -> dict[str, np.ndarray]:
  """The same as flat T5X parameters of the bare base."""
  tensors = merged_tensors(trained, sites)
  params = dict(trained.base_params)
  for entry in names.entries(trained.config, trained.layout):
    arrays = [tensors[source][1]() for source in entry.sources]
    params[entry.path] = entry.convert(arrays)
  return params
