# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The stacks of T5: who has a relative position bias."""

import jax
import jax.numpy as jnp
import pytest

from moe_peft.models import layers
from moe_peft.models import t5
from moe_peft.models import t5_stacks

SIZES = {
    'vocab_size': 8, 'emb_dim': 4, 'num_heads': 2, 'head_dim': 2, 'mlp_dim': 4
}


@pytest.mark.parametrize('of_each', [False, True], ids=['shared', 'of each'])
def test_layers_share_a_bias_or_have_one_each(of_each):
  config = t5.T5Config(
      **SIZES, num_encoder_layers=2, relative_bias_per_layer=of_each
  )
  embedder = layers.Embed(8, 4, jnp.float32)
  encoder = t5_stacks.Encoder(config, token_embedder=embedder)
  made = jax.eval_shape(
      lambda: encoder.init(
          jax.random.key(0), jnp.ones((1, 3), jnp.int32), None, True
      )
  )['params']
  assert ('relpos_bias' in made) != of_each
  for index in range(2):
    assert ('relpos_bias' in made[f'layers_{index}']) == of_each
