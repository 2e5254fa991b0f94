# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Imported bases compute what transformers computes; bad folders are named."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from moe_peft import checkpoints
from moe_peft import errors
from moe_peft import trainable
from moe_peft.hf import import_base
from moe_peft.models import t5
from tests.hf import conftest as models


def shapes_of(config):
  """Shapes by path of the parameters that models/t5.py needs."""
  module = t5.Transformer(config)
  ones = jnp.ones((1, 4), jnp.int32)
  variables = jax.eval_shape(
      lambda rng: module.init(rng, ones, ones, ones, enable_dropout=False),
      jax.random.key(0),
  )
  return trainable.flatten(variables['params'])


def jax_logits(config, params, encoder, decoder):
  """Logits of our model in float32."""
  with jax.default_matmul_precision('highest'):
    return np.asarray(
        t5.Transformer(config).apply(
            {'params': trainable.unflatten(params)},
            encoder,
            decoder,
            np.ones_like(decoder),
            enable_dropout=False,
        )
    )


def torch_logits(torch, folder, encoder, decoder, dtype=None):
  """Logits of transformers."""
  import transformers

  model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
      folder, dtype=dtype or torch.float32
  ).eval()
  ids = torch.tensor(encoder).long()
  with torch.no_grad():
    return model(
        input_ids=ids,
        attention_mask=(ids > 0).long(),
        decoder_input_ids=torch.tensor(decoder).long(),
    ).logits.numpy()


@pytest.mark.hf
@pytest.mark.parametrize('layout', ['t5', 'scan'])
@pytest.mark.parametrize('name', list(models.CONFIGS))
def test_logits_equal_those_of_transformers(tmp_path, hf, name, layout):
  config = models.CONFIGS[name]
  folder = models.write_model(
      tmp_path / 'hf', config, models.random_tensors(config)
  )
  ours = import_base.import_base(folder, tmp_path / 'base', layout)
  params = checkpoints.load_base(str(tmp_path / 'base'), shapes_of(ours))
  # Long enough for the last bucket of the relative positions.
  encoder, decoder = models.token_ids(config['vocab_size'], 150, 140)
  theirs = torch_logits(hf, folder, encoder, decoder)
  difference = np.abs(jax_logits(ours, params, encoder, decoder) - theirs)
  assert np.abs(theirs).max() > 1
  assert difference.max() < 1e-5 * np.abs(theirs).max()
