# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is one plain adapter is exported as one; tensors have their shapes."""

import numpy as np
import pytest

from moe_peft.hf import expert_shapes
from moe_peft.hf import folds
from moe_peft.hf import merge
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


@pytest.mark.parametrize('method', ['all_kinds', 'newer_plain'])
def test_tensors_of_an_expert_alone_have_the_shapes_of_its_spec(method):
  for site in adapted.make(method, 'llama').sites:
    for index in range(site.spec['num_experts']):
      for alone in folds.experts(site, index):
        assert {k: v.shape for k, v in alone.torch_tensors.items()} == (
            expert_shapes.expert_shapes(alone.spec)
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


@pytest.mark.slow
def test_layers_that_are_one_module_share_a_lora():
  """Of Phi-3: ranks stand side by side, each with rows of its own."""
  trained = adapted.make('lora', 'phi3')
  pairs = peft_format.lora_pairs(trained.sites)
  merged = trained.stored(merge.merged_tensors(trained, trained.sites))
  base = trained.hf_tensors()
  assert pairs['model.layers.0.self_attn.qkv_proj'][0].shape == (9, 32)
  for module, (down, up, scale) in pairs.items():
    name = f'{module}.weight'
    np.testing.assert_allclose(
        merged[name].load(), base[name].load() + scale * up @ down, atol=1e-5
    )
