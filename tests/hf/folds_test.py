# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is one plain adapter is exported as one; tensors have their shapes."""

import numpy as np
import pytest

from moe_peft.hf import expert_shapes
from moe_peft.hf import folds
from moe_peft.hf import peft_format
from moe_peft.hf import sites
from tests.hf import adapted


@pytest.mark.parametrize(
    ('method', 'family', 'kind'),
    [
        ('lora', 'llama', 'LORA'),
        ('adamix', 'llama', 'LORA'),
        ('one_block', 'llama', 'LORA'),
        ('ia3', 'llama', 'IA3'),
        ('molora', 'llama', None),
        ('mixed', 'llama', None),
    ],
)
def test_what_is_one_plain_adapter_is_native(method, family, kind):
  assert sites.native(adapted.make(method, family).sites) == kind


@pytest.mark.parametrize(
    ('method', 'family'), [('all_kinds_t5', 't5'), ('all_kinds', 'llama_scan')]
)
def test_tensors_have_the_shapes_of_the_spec(method, family):
  for site in adapted.make(method, family).sites:
    assert {k: v.shape for k, v in site.torch_tensors.items()} == (
        expert_shapes.expert_shapes(site.spec)
    )


def test_an_expert_of_a_block_is_a_lora_on_each_of_its_layers():
  block = adapted.make('mixlora', 'llama').sites
  block = next(x for x in block if x.spec['kind'] == 'block')
  alone = list(folds.experts(block, 2))
  assert [x.layer.module for x in alone] == [
      f'model.layers.0.mlp.{name}_proj' for name in ('gate', 'up', 'down')
  ]
  for site, name in zip(alone, ('wi_0', 'wi_1', 'wo'), strict=True):
    np.testing.assert_array_equal(
        site.tensors['lora_a'][0], block.tensors[f'{name}_lora_a'][2]
    )


def test_layers_that_are_one_module_share_a_lora():
  """As in Phi-3: ranks stand side by side, each with rows of its own."""
  trained = adapted.make('lora', 'llama')
  query, value = (
      next(x for x in trained.sites if x.path.endswith(f'/{name}'))
      for name in ('query', 'value')
  )
  parts = []
  for site, rows in ((query, (0, 32)), (value, (48, 64))):
    layer = site.layer.__class__('qkv', rows, 64)
    parts.append(sites.dataclasses.replace(site, layer=layer))
  down, up, scale = peft_format.lora_pairs(parts)['qkv']
  change = scale * up @ down
  assert change.shape == (64, 24)
  for site in parts:
    own = site.tensors['lora_a'][0] @ site.tensors['lora_b'][0] * 8 / 3
    np.testing.assert_allclose(
        change[slice(*site.layer.rows)], own.T, atol=1e-6
    )
  np.testing.assert_array_equal(change[32:48], 0)
