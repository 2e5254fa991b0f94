# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""PEFT LoRA folders as the experts of a MoLoRA."""

import json

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from moe_peft.hf import export
from moe_peft.hf import folders
from moe_peft.hf import import_experts
from moe_peft.hf import peft_format
from moe_peft.training import bases
from tests import refusals
from tests.hf import adapted

FEW = (adapted.rule('.*/(query|wo)', adapted.lora.LoRA, rank=2, alpha=5.0),)


def write_loras(tmp_path, config='t5'):
  """Two LoRA folders of different ranks, scales and sites."""
  paths = []
  second = 'lora_two_ranks' if config == 't5' else FEW
  for seed, method in enumerate(['lora', second]):
    trained = adapted.make(method, config, seed)
    folder = tmp_path / f'lora_{seed}'
    folder.mkdir()
    peft_format.write_adapter(folder, trained, trained.sites, 'some/base')
    paths.append((folder, trained))
  return paths


@pytest.mark.slow
@pytest.mark.parametrize('scan_layers', [False, True])
@pytest.mark.parametrize('family', ['t5', 'llama'])
def test_each_folder_becomes_one_expert(tmp_path, family, scan_layers):
  config = adapted.FAMILIES[family].replace(scan_layers=scan_layers)
  written = write_loras(tmp_path, family)
  experts = import_experts.read([f for f, _ in written], config)
  assert (experts.num_experts, experts.rank) == (2, 3)
  # A MoLoRA of these parameters, with the rules that the gin file gives.
  rules = (
      adapted.rule(
          experts.sites,
          adapted.molora.MoLoRA,
          {},
          num_experts=experts.num_experts,
          rank=experts.rank,
          alpha=experts.alpha,
      ),
  )
  mixture = adapted.make(rules, config)
  shapes = {k: v.shape for k, v in experts.params.items()}
  assert shapes == {
      k: v.shape
      for k, v in mixture.params.items()
      if '/adapter/lora_' in k
  }
  mixture.params.update(experts.params)
  for index, (_, trained) in enumerate(written):
    updates = {
        site.path: site.spec['alpha'] / site.spec['rank']
        * site.tensors['lora_a'][0] @ site.tensors['lora_b'][0]
        for site in trained.sites
    }
    for site in mixture.sites:
      ours = (
          site.spec['alpha'] / site.spec['rank']
          * site.tensors['lora_a'][index] @ site.tensors['lora_b'][index]
      )
      np.testing.assert_allclose(
          ours, updates.get(site.path, 0 * ours), atol=1e-6, err_msg=site.path
      )


def change_config(folder, **changes):
  """Changes the adapter's configuration."""
  file = folder / folders.ADAPTER_CONFIG
  file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_rslora_divides_by_the_root_of_the_rank(tmp_path):
  (folder, trained), _ = write_loras(tmp_path)
  change_config(folder, use_rslora=True)
  experts = import_experts.read([folder], adapted.CONFIG)
  site = trained.sites[0]
  ours = experts.alpha / experts.rank * (
      experts.params[f'{site.path}/adapter/lora_a'][0]
      @ experts.params[f'{site.path}/adapter/lora_b'][0]
  )
  theirs = site.tensors['lora_a'][0] @ site.tensors['lora_b'][0]
  np.testing.assert_allclose(ours, 8 / 3**0.5 * theirs, atol=1e-6)


def test_bad_folders_are_named(tmp_path):
  (folder, _), (other, _) = write_loras(tmp_path)
  with refusals.refused(tmp_path, folders.ADAPTER_CONFIG):
    import_experts.read([tmp_path], adapted.CONFIG)
  wide = adapted.CONFIG.replace(mlp_dim=41)
  with refusals.refused(folder, 'DenseReluDense', '(40, 24)', '(41, 24)'):
    import_experts.read([folder], wide)
  shallow = adapted.CONFIG.replace(num_decoder_layers=1)
  with refusals.refused(folder, 'decoder.block.1', 'none'):
    import_experts.read([folder], shallow)
  tensors = safetensors_numpy.load_file(folder / folders.ADAPTER_WEIGHTS)
  half = sorted(tensors)[0]
  del tensors[half]
  safetensors_numpy.save_file(tensors, folder / folders.ADAPTER_WEIGHTS)
  with refusals.refused(folder, 'lora_A or lora_B'):
    import_experts.read([folder], adapted.CONFIG)
  change_config(other, use_dora=True)
  with refusals.refused('use_dora', other):
    import_experts.read([other], adapted.CONFIG)
  change_config(other, peft_type='IA3')
  with refusals.refused('peft_type', other, "'IA3'", 'LORA'):
    import_experts.read([other], adapted.CONFIG)


@pytest.mark.slow
def test_base_and_experts_are_imported_together(tmp_path):
  from moe_peft.hf import import_base

  trained = adapted.make('lora')
  export.export(trained, tmp_path / 'export', 'peft')
  base = tmp_path / 'export' / 'base'
  import_base.import_base(
      base, tmp_path / 'out', experts=[tmp_path / 'export']
  )
  params = bases.read_arrays(tmp_path / 'out')
  assert sorted(params) == sorted(trained.params)
  for name, array in trained.params.items():
    np.testing.assert_allclose(params[name], array, atol=1e-6, err_msg=name)
  written = (tmp_path / 'out' / 'experts.gin').read_text()
  assert 'NUM_EXPERTS = 1' in written
  assert 'TRAINABLE_REGEX' not in written  # There is no router.
