# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Published decoders, from the numbers of their `config.json` alone.

The plan of the import counts the parameters of the published model to the last
one, and the gin file of that size is what the import would write.
"""

import math

import gin
import jax
import jax.numpy as jnp
import pytest

from moe_peft import gin_files
from moe_peft.hf import decoder_base
from moe_peft.models import decoder

_LLAMA3 = {
    'rope_type': 'llama3', 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8192,
}
_YARN = {
    'rope_type': 'yarn', 'factor': 8.0,
    'original_max_position_embeddings': 8192,
}
_GEMMA3 = {'sliding_window': 512, 'query_pre_attn_scalar': 256}
_GRANITE = {
    'embedding_multiplier': 12.0, 'attention_multiplier': 0.015625,
    'residual_multiplier': 0.22, 'logits_scaling': 8.0,
}
_PHI4 = [
    1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225,
    1.74916897, 1.956131817, 2.187582649, 2.446418898, 2.735880826,
    3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845,
    5.351743533, 5.984965424, 6.693110555, 7.485043894, 8.370679318,
    9.36110372, 10.4687158, 11.70738129, 13.09260651, 14.64173252,
    16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418,
    28.64115884, 32.03, 32.1, 32.13, 32.23,
    32.6, 32.61, 32.64, 32.66, 32.7,
    32.71, 32.93, 32.97, 33.28, 33.49,
    33.5, 44.16, 47.77,
]
# Name and family; layers, width, MLP, heads, heads of keys, head_dim,
# vocabulary, rope_theta, rms_norm_eps; parameters.
TABLE = """
smollm2_135m llama 30 576 1536 9 3 64 49152 1e5 1e-5 tied 134_515_008
smollm2_360m llama 32 960 2560 15 5 64 49152 1e5 1e-5 tied 361_821_120
smollm2_1_7b llama 24 2048 8192 32 32 64 49152 1.3e5 1e-5 tied 1_711_376_384
smollm3_3b smollm3 36 2048 11008 16 4 128 128256 5e6 1e-6 tied 3_075_098_624
qwen2_5_0_5b qwen2 24 896 4864 14 2 64 151936 1e6 1e-6 tied 494_032_768
qwen2_5_1_5b qwen2 28 1536 8960 12 2 128 151936 1e6 1e-6 tied 1_543_714_304
qwen2_5_7b qwen2 28 3584 18944 28 4 128 152064 1e6 1e-6 untied 7_615_616_512
qwen3_0_6b qwen3 28 1024 3072 16 8 128 151936 1e6 1e-6 tied 596_049_920
qwen3_1_7b qwen3 28 2048 6144 16 8 128 151936 1e6 1e-6 tied 1_720_574_976
qwen3_4b qwen3 36 2560 9728 32 8 128 151936 1e6 1e-6 tied 4_022_468_096
qwen3_8b qwen3 36 4096 12288 32 8 128 151936 1e6 1e-6 untied 8_190_735_360
llama3_1_8b llama 32 4096 14336 32 8 128 128256 5e5 1e-5 untied 8_030_261_248
llama3_2_1b llama 16 2048 8192 32 8 64 128256 5e5 1e-5 tied 1_235_814_400
llama3_2_3b llama 28 3072 8192 24 8 128 128256 5e5 1e-5 tied 3_212_749_824
mistral_7b mistral 32 4096 14336 32 8 128 32768 1e6 1e-5 untied 7_248_023_552
gemma2_2b gemma2 26 2304 9216 8 4 256 256000 1e4 1e-6 tied 2_614_341_888
gemma2_9b gemma2 42 3584 14336 16 8 256 256000 1e4 1e-6 tied 9_241_705_984
gemma3_270m gemma3_text 18 640 2048 4 1 256 262144 1e6 1e-6 tied 268_098_176
gemma3_1b gemma3_text 26 1152 6912 4 1 256 262144 1e6 1e-6 tied 999_885_952
olmo2_1b olmo2 16 2048 8192 16 16 128 100352 5e5 1e-6 untied 1_484_916_736
olmo3_7b olmo3 32 4096 11008 32 32 128 100278 5e5 1e-6 untied 7_298_011_136
granite3_3_2b granite 40 2048 8192 32 8 64 49159 1e7 1e-5 tied 2_533_539_840
phi4_mini phi3 32 3072 8192 24 8 128 200064 1e4 1e-5 tied 3_836_021_760
"""
# What else the file says.
MORE = {
    **dict.fromkeys(('llama3_2_1b', 'llama3_2_3b'), {
        'rope_scaling': {**_LLAMA3, 'factor': 32.0}
    }),
    'llama3_1_8b': {'rope_scaling': {**_LLAMA3, 'factor': 8.0}},
    'mistral_7b': {'sliding_window': None},
    'gemma3_270m': _GEMMA3,
    'gemma3_1b': _GEMMA3,
    'olmo3_7b': {'rope_scaling': _YARN},
    'granite3_3_2b': _GRANITE,
    'phi4_mini': {
        'partial_rotary_factor': 0.75,
        'original_max_position_embeddings': 4096,
        'rope_scaling': {
            'type': 'longrope', 'short_factor': [1.0] * 48, 'long_factor': _PHI4
        },
    },
}
MODELS = {row.split()[0]: row.split()[1:] for row in TABLE.strip().splitlines()}
_FIELDS = (
    'num_hidden_layers', 'hidden_size', 'intermediate_size',
    'num_attention_heads', 'num_key_value_heads', 'head_dim', 'vocab_size',
    'rope_theta', 'rms_norm_eps',
)


def hf_config(name):
  kind, *numbers, tied, _ = MODELS[name]
  sizes = [int(x) for x in numbers[:7]] + [float(x) for x in numbers[7:]]
  return {
      'model_type': kind,
      'max_position_embeddings': 131072,
      'tie_word_embeddings': tied == 'tied',
      **dict(zip(_FIELDS, sizes, strict=True)),
      **MORE.get(name, {}),
  }


@pytest.mark.parametrize('name', MODELS)
def test_the_plan_counts_the_published_parameters(name):
  config = decoder_base.from_hf(hf_config(name), 'scan')
  entries = decoder_base.entries(config, 'scan')
  count = sum(math.prod(x.full_shape) for x in entries)
  assert count == int(MODELS[name][-1])


@pytest.mark.slow
@pytest.mark.parametrize('name', MODELS)
def test_the_network_has_the_published_parameters(name):
  config = decoder_base.from_hf(hf_config(name), 'scan')
  ones = jnp.ones((1, 4), jnp.int32)
  shapes = jax.eval_shape(
      lambda: decoder.Transformer(config).init(
          jax.random.key(0), ones, ones, enable_dropout=False
      )
  )
  leaves = jax.tree.leaves(shapes['params'])
  assert sum(x.size for x in leaves) == int(MODELS[name][-1])


@pytest.mark.parametrize('name', MODELS)
def test_the_gin_file_is_the_published_model(name):
  gin_files.load_gin(
      [f'gin/models/{name}.gin', 'gin/methods/lora.gin'],
      ["ACTIVATION_DTYPE = 'float32'"],
  )
  model = gin.query_parameter('%MODEL').scoped_configurable_fn()
  config = model.module.module.config
  expected = decoder_base.from_hf(hf_config(name))
  assert config.replace(dtype=expected.dtype) == expected
