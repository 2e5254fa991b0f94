# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Names of sites are taken apart and put in order as layers are."""

from moe_peft.runs import site_names


def test_layers_are_in_order_of_their_numbers():
  names = [f'encoder/layers_{i}/mlp/wo' for i in (10, 2, 0)]
  assert sorted(names, key=site_names.order) == names[::-1]


def test_a_site_is_taken_apart():
  site = 'decoder/layers_11/self_attention/key'
  assert site_names.split(site) == ('decoder', 11, 'self_attention/key')
  # The head of a model without tied embeddings is in no layer.
  assert site_names.split('decoder/logits_dense') == (
      'decoder', 0, 'logits_dense'
  )
  described = site_names.describe(site, 4)
  assert described['path'] == site and described['num_experts'] == 4
  assert (described['stack'], described['layer'], described['name']) == (
      site_names.split(site)
  )
