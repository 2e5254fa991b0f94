# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tracing finds every adapter, with the fields that its factory set."""

import functools

import jax
import pytest

from moe_peft.core import adapted_sites
from moe_peft.core import inject
from moe_peft.core import trainable
from moe_peft.methods import lora
from moe_peft.methods import molora
from tests import tiny_network

RULES = (
    inject.OutputRule(
        'encoder/.*/wo', functools.partial(molora.MoLoRA, num_experts=3, rank=2)
    ),
    inject.OutputRule(
        'decoder/.*/query', functools.partial(lora.LoRA, rank=4)
    ),
)


def initialize(scan):
  """Returns the adapted network and a function that initializes it."""
  network = tiny_network.Network(tiny_network.Config(scan=scan))
  module = inject.AdaptedModule(network, RULES)
  return module, lambda: module.init(jax.random.key(0), *tiny_network.tokens())


@pytest.mark.parametrize('scan', [False, True])
def test_every_adapter_is_found_once_with_its_fields(scan):
  _, init = initialize(scan)
  variables, sites = adapted_sites.trace(init)
  layers = ['layers'] if scan else ['layers_0', 'layers_1']
  assert sorted(sites) == sorted(
      [f'encoder/{layer}/mlp/wo' for layer in layers]
      + [f'decoder/{layer}/self_attention/query' for layer in layers]
  )
  params = trainable.flatten(variables['params'])
  adapted = {
      path.partition('/adapter/')[0]
      for path in params if trainable.is_adapter(path)
  }
  assert adapted == set(sites)
  routed = sites[f'encoder/{layers[0]}/mlp/wo']
  assert isinstance(routed.adapter, molora.MoLoRA)
  assert (routed.adapter.num_experts, routed.adapter.rank) == (3, 2)
  assert routed.router.num_experts == 3
  shape = (tiny_network.BATCH, tiny_network.LENGTH, 3)
  assert routed.routing.combine_weights.shape == shape
  plain = sites[f'decoder/{layers[0]}/self_attention/query']
  assert isinstance(plain.adapter, lora.LoRA)
  assert plain.router is None and plain.routing is None


@pytest.mark.slow
def test_a_function_can_be_traced_again():
  module, init = initialize(scan=False)
  variables, first = adapted_sites.trace(init)

  def forward(params):
    return module.apply({'params': params}, *tiny_network.tokens())

  for _ in range(2):
    outputs, again = adapted_sites.trace(forward, variables['params'])
    assert list(again) == list(first)
    assert outputs.shape == (tiny_network.BATCH, tiny_network.LENGTH, 16)
