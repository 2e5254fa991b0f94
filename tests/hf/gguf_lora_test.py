# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""LoRAs for llama.cpp, held against our own reader of its bases."""

import numpy as np
import pytest

from moe_peft.hf import export
from moe_peft.hf import gguf_file
from moe_peft.hf import gguf_lora
from moe_peft.hf import merge
from tests import refusals
from tests.hf import adapted
from tests.hf import import_decoder_test


@pytest.mark.parametrize('method', ['adamix', 'lora'])
def test_a_base_with_the_lora_is_the_merged_model(tmp_path, method):
  gguf = pytest.importorskip('gguf')
  trained = adapted.make(method, 'llama')
  export.export(trained, tmp_path / 'out', 'gguf')
  config = trained.hf_config_json()
  base = {name: x.load() for name, x in trained.hf_tensors().items()}
  import_decoder_test.write_gguf(tmp_path / 'b.gguf', config, base)
  reader = gguf.GGUFReader(tmp_path / 'out' / gguf_lora.FILE)
  fields = {name: field.contents() for name, field in reader.fields.items()}
  assert fields['general.type'] == 'adapter'
  assert fields['adapter.type'] == 'lora'
  assert fields['general.architecture'] == 'llama'
  halves = {x.name: x.data for x in reader.tensors}
  names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
  merged = merge.merged_tensors(trained, trained.sites)
  found = gguf_file.GgufFile(tmp_path / 'b.gguf')
  heads = {'q_proj': 4, 'k_proj': 2}
  assert len(halves) == 2 * len(trained.sites)
  for site in trained.sites:
    name = f'{site.layer.module}.weight'
    theirs = names.get_name(name, ('.weight',))
    down, up = (halves[f'{theirs}.lora_{x}'] for x in 'ab')
    change = up @ down * fields['adapter.lora.alpha'] / len(down)
    leaf = name.split('.')[-2]
    if leaf in heads:
      change = gguf_file._split_halves(change, heads[leaf])
    np.testing.assert_allclose(
        found[name] + change, merged[name].load(), atol=1e-5, err_msg=name
    )


@pytest.mark.slow
def test_what_is_not_one_lora_is_refused(tmp_path):
  pytest.importorskip('gguf')
  for method in ('molora', 'ia3'):
    with refusals.refused('--format gguf', '--collapse'):
      export.export(adapted.make(method, 'llama'), tmp_path / 'out', 'gguf')
  assert not list(tmp_path.iterdir())
