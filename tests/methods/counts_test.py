# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Trainable parameters at the published sizes, to the last one.

The numbers follow from the released code of arXiv 2309.05444. Per expert they
are 72 attentions and 48 MLPs (24 + 24 layers) of vectors, low-rank pairs and
routers.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

from moe_peft.core import inject
from moe_peft.core import routing
from moe_peft.core import scores
from moe_peft.core import trainable
from moe_peft.methods import ia3
from moe_peft.methods import lora
from moe_peft.methods import molora
from moe_peft.methods import mov
from moe_peft.models import t5

SIZES = {
    'large': dict(emb_dim=1024, num_heads=16, mlp_dim=2816),
    'xl': dict(emb_dim=2048, num_heads=32, mlp_dim=5120),
    'xxl': dict(emb_dim=4096, num_heads=64, mlp_dim=10240),
}
VECTORS = '.*/(key|value|act)'
MATRICES = '.*/(query|key|value|out|wi_0|wo)'
PER_HEAD = functools.partial(
    routing.Router, scores=scores.HeadScores()
)
METHODS = {
    'ia3': (VECTORS, ia3.IA3),
    'mov-10': (
        VECTORS,
        functools.partial(mov.MoV, num_experts=10, router_factory=PER_HEAD),
    ),
    'mov-30': (
        VECTORS,
        functools.partial(mov.MoV, num_experts=30, router_factory=PER_HEAD),
    ),
    'mov-60': (
        VECTORS,
        functools.partial(mov.MoV, num_experts=60, router_factory=PER_HEAD),
    ),
    'lora-4': (MATRICES, functools.partial(lora.LoRA, rank=4)),
    'lora-16': (MATRICES, functools.partial(lora.LoRA, rank=16)),
    'molora-10': (MATRICES, functools.partial(molora.MoLoRA, num_experts=10)),
    'molora-15': (MATRICES, functools.partial(molora.MoLoRA, num_experts=15)),
}
COUNTS = {
    ('large', 'ia3'): 282_624,
    ('large', 'mov-10'): 4_270_080,
    ('large', 'mov-30'): 12_810_240,
    ('large', 'mov-60'): 25_620_480,
    ('large', 'lora-4'): 3_833_856,
    ('large', 'lora-16'): 15_335_424,
    ('large', 'molora-10'): 43_130_880,
    ('large', 'molora-15'): 64_696_320,
    ('xl', 'ia3'): 540_672,
    ('xl', 'mov-10'): 7_956_480,
    ('xl', 'mov-30'): 23_869_440,
    ('xl', 'mov-60'): 47_738_880,
    ('xl', 'lora-4'): 7_471_104,
    ('xl', 'lora-16'): 29_884_416,
    ('xl', 'molora-10'): 84_049_920,
    ('xl', 'molora-15'): 126_074_880,
    ('xxl', 'ia3'): 1_081_344,
    ('xxl', 'mov-10'): 15_820_800,
    ('xxl', 'mov-30'): 47_462_400,
    ('xxl', 'mov-60'): 94_924_800,
    ('xxl', 'lora-4'): 14_942_208,
    ('xxl', 'lora-16'): 59_768_832,
    ('xxl', 'molora-10'): 168_099_840,
    ('xxl', 'molora-15'): 252_149_760,
}


@pytest.mark.parametrize(('size', 'method'), COUNTS)
def test_trainable_parameters(size, method):
  # Scanned: one layer is traced instead of 24, the parameters are the same.
  config = t5.T5Config(
      vocab_size=32128,
      head_dim=64,
      num_encoder_layers=24,
      num_decoder_layers=24,
      mlp_activations=('gelu', 'linear'),
      scan_layers=True,
      **SIZES[size],
  )
  path, factory = METHODS[method]
  model = inject.AdaptedModule(
      t5.Transformer(config), (inject.OutputRule(path, factory),)
  )
  ids = jnp.ones((1, 2), jnp.int32)
  init = functools.partial(model.init, enable_dropout=False)
  shapes = jax.eval_shape(init, jax.random.key(0), ids, ids, ids)['params']
  adapters, _ = trainable.split(trainable.flatten(shapes))
  assert trainable.num_params(adapters) == COUNTS[size, method]
