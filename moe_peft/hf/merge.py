# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapters without a router become part of the weights."""

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np

from moe_peft import errors
from moe_peft.hf import lazy_arrays
from moe_peft.hf import sites as sites_lib
from moe_peft.hf import t5_names
from moe_peft.hf import trained as trained_lib


def merged_tensors(
    trained: trained_lib.Trained, sites: Sequence[sites_lib.AdaptedSite]
) -> dict[str, lazy_arrays.LazyArray]:
  """Hugging Face tensors with the adapters `sites` in them, by name.

  Raises:
    errors.UserError: If an adapter depends on the token.
  """
  if any(site.routed for site in sites):
    raise errors.UserError(
        f'{sites_lib.methods(sites)} cannot be merged: which expert acts '
        'depends on the token, and a mean of the experts computes something '
        'else.', where='--format merged',
        remedy='Use --format peft (one import line) or full '
        '(trust_remote_code), or --collapse FILE.jsonl for an ordinary LoRA '
        'with a measured loss.',
    )
  tensors = trained.hf_tensors()
  for site in sites:
    name, change = _change(site)
    weight = tensors[name]
    tensors[name] = dataclasses.replace(
        weight,
        read=lambda read=weight.read, change=change: change(read()),
    )
  return tensors


def _change(
    site: sites_lib.AdaptedSite,
) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
  """Returns the Hugging Face weight [out, in] that changes, and how."""
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
  """Returns the dense module that a vector scales, and whether at its inputs.

  Scaling the activated branch of an MLP is scaling the inputs of `wo`: a gated
  MLP multiplies the branches.
  """
  parent, _, name = site.hf_module.rpartition('.')
  if name == 'act':
    return f'{parent}.wo', True
  return site.hf_module, site.spec['site_input']


def merged_params(
    trained: trained_lib.Trained, sites: Sequence[sites_lib.AdaptedSite]
) -> dict[str, np.ndarray]:
  """The same as flat parameters of the bare base."""
  tensors = merged_tensors(trained, sites)
  return {
      entry.path: entry.convert([tensors[x].load() for x in entry.sources])
      for entry in t5_names.entries(trained.config, trained.layout)
  }
