# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Small random models of Hugging Face's T5 family."""

import json

import numpy as np
import pytest

SMALL = {
    'architectures': ['T5ForConditionalGeneration'],
    'model_type': 't5',
    'vocab_size': 96,
    'd_model': 24,
    'd_kv': 16,  # 3 heads of 16 are not 24: a missing transpose is an error.
    'd_ff': 40,
    'num_heads': 3,
    'num_layers': 2,
    'num_decoder_layers': 3,
    'feed_forward_proj': 'gated-gelu',
    'tie_word_embeddings': False,
    'relative_attention_num_buckets': 32,
    'relative_attention_max_distance': 128,
    'layer_norm_epsilon': 1e-6,
    'dropout_rate': 0.0,
    'decoder_start_token_id': 0,
    'pad_token_id': 0,
    'eos_token_id': 1,
}
CONFIGS = {
    't5_1_1': SMALL,
    't5_1_0': {
        **SMALL,
        'feed_forward_proj': 'relu',
        'tie_word_embeddings': True,
    },
    'mt5': {
        **SMALL,
        'architectures': ['MT5ForConditionalGeneration'],
        'model_type': 'mt5',
    },
    'umt5': {
        **SMALL,
        'architectures': ['UMT5ForConditionalGeneration'],
        'model_type': 'umt5',
    },
    'byt5': {
        **SMALL,
        'vocab_size': 384,
        'num_layers': 3,
        'num_decoder_layers': 1,
    },
}


def random_tensors(config, seed=0):
  """Tensors of the size that training leaves, by Hugging Face name."""
  rng = np.random.default_rng(seed)
  embed, joined = config['d_model'], config['num_heads'] * config['d_kv']
  hidden = config['d_ff']
  normal = lambda *shape, std: rng.normal(0, std, shape).astype(np.float32)
  tensors = {'shared.weight': normal(config['vocab_size'], embed, std=1.0)}
  if not config['tie_word_embeddings']:
    tensors['lm_head.weight'] = normal(config['vocab_size'], embed, std=0.3)
  for stack, layers in (
      ('encoder', config['num_layers']),
      ('decoder', config['num_decoder_layers']),
  ):
    for layer in range(layers):
      prefix = f'{stack}.block.{layer}.layer'
      blocks = ['SelfAttention', 'EncDecAttention'][: 1 + (stack == 'decoder')]
      for number, block in enumerate(blocks):
        for name, shape in (
            ('q', (joined, embed)),
            ('k', (joined, embed)),
            ('v', (joined, embed)),
            ('o', (embed, joined)),
        ):
          std = 0.1 if name == 'q' else 0.2
          tensors[f'{prefix}.{number}.{block}.{name}.weight'] = normal(
              *shape, std=std
          )
      number = len(blocks)
      gated = config['feed_forward_proj'].startswith('gated')
      for name in ('wi_0', 'wi_1') if gated else ('wi',):
        tensors[f'{prefix}.{number}.DenseReluDense.{name}.weight'] = normal(
            hidden, embed, std=0.2
        )
      tensors[f'{prefix}.{number}.DenseReluDense.wo.weight'] = normal(
          embed, hidden, std=0.2
      )
      for index in range(number + 1):
        tensors[f'{prefix}.{index}.layer_norm.weight'] = 1 + normal(
            embed, std=0.1
        )
    for layer in range(layers if config['model_type'] == 'umt5' else 1):
      tensors[
          f'{stack}.block.{layer}.layer.0.SelfAttention.'
          'relative_attention_bias.weight'
      ] = normal(32, config['num_heads'], std=0.5)
    tensors[f'{stack}.final_layer_norm.weight'] = 1 + normal(embed, std=0.1)
  return tensors


def write_model(folder, config, tensors):
  """Writes a Hugging Face folder."""
  from safetensors import numpy as safetensors_numpy

  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(config))
  safetensors_numpy.save_file(
      {k: np.ascontiguousarray(v) for k, v in tensors.items()},
      folder / 'model.safetensors',
      metadata={'format': 'pt'},
  )
  return folder


def token_ids(vocab_size, encoder_length=40, decoder_length=30, seed=3):
  """Encoder ids with padding in the second row, and decoder ids."""
  rng = np.random.default_rng(seed)
  encoder = rng.integers(3, vocab_size, (2, encoder_length)).astype(np.int32)
  encoder[1, encoder_length - 11 :] = 0
  decoder = rng.integers(3, vocab_size, (2, decoder_length)).astype(np.int32)
  decoder[:, 0] = 0
  return encoder, decoder


@pytest.fixture
def hf():
  """Torch, transformers and peft; skips where they are not installed."""
  reason = "needs pip install 'moe-peft-jax[hf]'"
  torch = pytest.importorskip('torch', reason=reason)
  pytest.importorskip('transformers', reason=reason)
  pytest.importorskip('peft', reason=reason)
  torch.set_num_threads(1)
  return torch
