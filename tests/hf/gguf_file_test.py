# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Names and rotary layout of GGUF files."""

import numpy as np
import pytest

from moe_peft.hf import gguf_file
from tests.refusals import refused


@pytest.mark.parametrize(
    ('name', 'want'),
    [
        ('token_embd.weight', 'model.embed_tokens.weight'),
        ('blk.12.attn_q.weight', 'model.layers.12.self_attn.q_proj.weight'),
        ('blk.3.ffn_norm.weight',
         'model.layers.3.post_attention_layernorm.weight'),
        ('rope_freqs.weight', 'rope_freqs.weight'),
    ],
)
def test_names(name, want):
  assert gguf_file._hf_name(name) == want


def test_rotary_pairs_become_halves():
  # One head of four: neighbors (0, 1), (2, 3) become pairs (0, 2), (1, 3).
  rows = np.arange(8.0).reshape(4, 2)
  split = gguf_file._split_halves(np.concatenate([rows, 10 + rows]), heads=2)
  np.testing.assert_array_equal(split[:4], rows[[0, 2, 1, 3]])
  np.testing.assert_array_equal(split[4:], 10 + rows[[0, 2, 1, 3]])


def test_a_file_that_is_no_gguf_is_named(tmp_path):
  pytest.importorskip('gguf')
  file = tmp_path / 'model.gguf'
  file.write_bytes(b'GGUF' + bytes(40))
  with refused(file):
    gguf_file.GgufFile(file)
