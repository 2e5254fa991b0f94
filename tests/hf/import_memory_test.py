# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""An import needs the memory of its largest tensors, not of the model."""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from moe_peft.hf import decoder_base

CONFIG = {
    'model_type': 'llama', 'vocab_size': 32000, 'hidden_size': 1024,
    'intermediate_size': 4096, 'num_hidden_layers': 24,
    'num_attention_heads': 16, 'num_key_value_heads': 4,
    'rms_norm_eps': 1e-5, 'tie_word_embeddings': True,
}
_RUN = """
import resource, sys
from moe_peft.hf import import_base
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
import_base.import_base(*map(__import__('pathlib').Path, sys.argv[1:3]), 'scan')
print(peak() - before)
"""


@pytest.mark.slow
def test_a_large_folder_is_imported_in_bounded_memory(tmp_path):
  entries = decoder_base.entries(decoder_base.from_hf(CONFIG), 't5')
  noise = np.random.default_rng(0).normal(0, 0.02, 2**20)
  noise = noise.astype(ml_dtypes.bfloat16)
  tensors = {
      name: np.resize(noise, entry.hf_shape)
      for entry in entries for name in entry.sources
  }
  folder = tmp_path / 'hf'
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(CONFIG))
  file = folder / 'model.safetensors'
  safetensors_numpy.save_file(tensors, file, metadata={'format': 'pt'})
  size = file.stat().st_size
  assert size > 700e6
  result = subprocess.run(
      [sys.executable, '-c', _RUN, str(folder), str(tmp_path / 'base')],
      capture_output=True, text=True, check=True,
  )
  assert int(result.stdout.split()[-1]) < 1.3 * size
