# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every family of decoders computes what transformers computes.

A row of `FAMILIES` is a small `config.json`; transformers makes the model, all
of its parameters are drawn at random, norms and biases included, and what we
import from its folder is compared with it: rows alone, padded, packed, and step
by step with a cache.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import trainable
from moe_peft.hf import decoder_base
from moe_peft.hf import import_base
from moe_peft.models import decoder
from moe_peft.training import bases
from tests import refusals
from tests.hf import import_decoder_test

SIZES = {
    'vocab_size': 64,
    'hidden_size': 32,
    'intermediate_size': 40,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'max_position_embeddings': 64,
    'bos_token_id': 1,
    'eos_token_id': 2,
    'pad_token_id': None,
}
# Heads of 6 are neither 32 / 4 nor 24 / 4: a missing transpose is an error.
_HEADS = {'head_dim': 6, 'hidden_size': 24}
_LLAMA3 = {
    'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0,
    'high_freq_factor': 4.0, 'original_max_position_embeddings': 16,
}
_YARN = {
    'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 16,
}
_LONGROPE = {
    'rope_type': 'longrope', 'factor': 4.0,
    'short_factor': [1.0, 1.5], 'long_factor': [2.0, 5.0],
}
FAMILIES = {
    'llama2': {'model_type': 'llama', **_HEADS},
    'llama3': {
        'model_type': 'llama', 'rope_theta': 500.0, 'rope_scaling': _LLAMA3,
        'attention_bias': True, 'mlp_bias': True,
    },
    'llama_linear': {
        'model_type': 'llama',
        'rope_scaling': {'type': 'linear', 'factor': 3.0},
    },
    'llama_dynamic': {
        'model_type': 'llama',
        'rope_scaling': {'type': 'dynamic', 'factor': 3.0},
    },
    'mistral': {'model_type': 'mistral', 'sliding_window': 8, **_HEADS},
    'mistral_nemo': {'model_type': 'mistral', 'sliding_window': None, **_HEADS},
    'qwen2': {'model_type': 'qwen2', 'rope_theta': 500.0},
    'qwen2_windows': {
        'model_type': 'qwen2', 'use_sliding_window': True, 'sliding_window': 8,
        'max_window_layers': 1, 'rope_scaling': _YARN,
    },
    'qwen3': {'model_type': 'qwen3', 'tie_word_embeddings': True, **_HEADS},
    'gemma': {'model_type': 'gemma', **_HEADS},
    'gemma2': {
        'model_type': 'gemma2', 'sliding_window': 8, 'num_hidden_layers': 4,
        'query_pre_attn_scalar': 16, 'attn_logit_softcapping': 5.0,
        'final_logit_softcapping': 3.0, **_HEADS,
    },
    'gemma3': {
        'model_type': 'gemma3_text', 'sliding_window': 8,
        'sliding_window_pattern': 2, 'num_hidden_layers': 4,
        'query_pre_attn_scalar': 16, 'rope_theta': 500.0,
        'rope_local_base_freq': 20.0, **_HEADS,
        'rope_scaling': {'rope_type': 'linear', 'factor': 8.0},
        # Transformers computes the latter only, and reads no hidden_act.
        'attn_logit_softcapping': 1.0, 'final_logit_softcapping': 3.0,
        'hidden_act': 'silu',
    },
    'phi3': {'model_type': 'phi3', 'sliding_window': 8},
    'phi4_mini': {
        'model_type': 'phi3', 'rope_scaling': _LONGROPE,
        'partial_rotary_factor': 0.5, 'tie_word_embeddings': True,
        'original_max_position_embeddings': 48,
    },
    'olmo2': {'model_type': 'olmo2', 'rope_theta': 500.0},
    'olmo3': {
        'model_type': 'olmo3', 'sliding_window': 8, 'num_hidden_layers': 8,
        'rope_parameters': {
            'full_attention': {**_YARN, 'rope_theta': 500.0},
            'sliding_attention': {'rope_type': 'default', 'rope_theta': 500.0},
        },
    },
    'granite': {
        'model_type': 'granite', 'embedding_multiplier': 3.0,
        'attention_multiplier': 0.2, 'residual_multiplier': 0.5,
        'logits_scaling': 2.0,
    },
    'smollm3': {'model_type': 'smollm3', 'num_hidden_layers': 4},
}
# Checked by default; the others are slow for their number only.
QUICK = ('llama3', 'qwen2_windows', 'gemma3', 'phi4_mini')
# What must not be equal: an option that is wrong in one place.
WRONG = {
    'llama3': {'rope_scaling': None},
    'qwen2_windows': {'window': 9},
    'mistral': {'layer_pattern': ('global',)},
    'qwen3': {'qk_norm': 'none'},
    'gemma': {'embedding_scale': 1.0},
    'gemma2': {'attention_softcap': 0.0},
    'gemma3': {'local_rope_theta': None},
    'phi4_mini': {'rope_fraction': 1.0, 'rope_scaling': None},
    'olmo2': {'rope_theta': 400.0},
    'olmo3': {'local_rope_theta': None},
    'granite': {'residual_scale': 1.0},
    'smollm3': {'layer_pattern': ('global',)},
}
LENGTH = 24


def folder_of(torch, row, folder):
  """A model of transformers with random parameters; returns it."""
  import transformers

  config = {**SIZES, **row}
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(config))
  loaded = transformers.AutoConfig.from_pretrained(folder)
  model = transformers.AutoModelForCausalLM.from_config(
      loaded, attn_implementation='eager', dtype=torch.float32
  ).eval()
  generator = torch.Generator().manual_seed(0)
  ones = 0.0 if row['model_type'].startswith('gemma') else 1.0
  for name, parameter in model.named_parameters():
    noise = torch.randn(parameter.shape, generator=generator) * 0.25
    is_norm = name.endswith('norm.weight')
    parameter.data = noise + ones if is_norm else noise
  model.save_pretrained(folder)
  # The file as the family publishes it, and as version 5 writes it.
  (folder / 'config_5.json').write_text((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps(config))
  return model


def logits_of(torch, model, tokens):
  with torch.no_grad():
    tokens = torch.tensor(np.asarray(tokens)).long()
    return model(input_ids=tokens).logits.numpy()


def base_of(folder, out, layout):
  """Imports a folder; returns our configuration and the parameters."""
  config = import_base.import_base(folder, out, layout, 'safetensors')
  params = bases.load_base(str(out), _shapes(config))
  return config, {'params': trainable.unflatten(params)}


def _shapes(config):
  ones = jnp.ones((1, 4), jnp.int32)
  module = decoder.Transformer(config)
  shapes = jax.eval_shape(
      lambda: module.init(jax.random.key(0), ones, ones, enable_dropout=False)
  )
  return trainable.flatten(shapes['params'])


def apply(config, params, tokens, **options):
  run = functools.partial(
      decoder.Transformer(config).apply, enable_dropout=False
  )
  with jax.default_matmul_precision('highest'):
    return jax.jit(run)(params, tokens, jnp.ones_like(tokens), **options)


def token_ids(rows, length, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 64, (rows, length), dtype=np.int32)


def assert_close(actual, expected, name):
  expected = np.asarray(expected)
  error = np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()
  assert error < 1e-4, f'{name}: {error:.1e} of the largest logit'


def check_rows(torch, model, config, params):
  """A row alone, a padded one, and two examples packed into one row."""
  alone, short, second = token_ids(1, LENGTH), token_ids(1, 9), token_ids(1, 11)
  tokens = np.zeros((3, LENGTH), np.int32)
  segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
  tokens[0], tokens[1, :9], tokens[2, :9], tokens[2, 9:20] = (
      alone[0], short[0], short[0], second[0]
  )
  segments[0], segments[1, :9], segments[2, :9], segments[2, 9:20] = 1, 1, 1, 2
  positions[0], positions[1, :9] = np.arange(LENGTH), np.arange(9)
  positions[2, :9], positions[2, 9:20] = np.arange(9), np.arange(11)
  logits = apply(
      config, params, tokens, decoder_segment_ids=segments,
      decoder_positions=positions,
  )
  assert_close(logits[0], logits_of(torch, model, alone)[0], 'alone')
  expected = logits_of(torch, model, short)[0]
  assert_close(logits[1, :9], expected, 'padded')
  assert_close(logits[2, :9], expected, 'packed, first')
  assert_close(
      logits[2, 9:20], logits_of(torch, model, second)[0], 'packed, second'
  )


def check_cache(torch, model, config, params):
  """Prompts of different lengths, then token by token."""
  tokens, lengths = token_ids(2, LENGTH), np.asarray([14, 5], np.int32)
  expected = logits_of(torch, model, tokens)
  module = decoder.Transformer(config)
  run = functools.partial(module.apply, mutable=['cache'], enable_dropout=False)
  ones = np.ones_like(tokens)
  _, cache = jax.eval_shape(
      functools.partial(run, decode=True), params, ones, ones
  )
  cache = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), cache)
  prefill = jax.jit(functools.partial(run, prefill=True))
  step = jax.jit(functools.partial(run, decode=True))
  with jax.default_matmul_precision('highest'):
    logits, cache = prefill(
        {**params, **cache}, tokens[:, :14], ones[:, :14],
        prefill_lengths=lengths,
    )
    for row, length in enumerate(lengths):
      assert_close(
          logits[row, :length], expected[row, :length], f'prompt of {length}'
      )
    rows = np.arange(2)
    for index in range(LENGTH - 14):
      ids = tokens[rows, lengths + index][:, None]
      logits, cache = step({**params, **cache}, ids, ids)
      assert_close(
          logits[:, 0], expected[rows, lengths + index], f'step {index}'
      )


def families(names):
  return [
      pytest.param(x, marks=() if x in QUICK else pytest.mark.slow)
      for x in names
  ]


@pytest.mark.hf
@pytest.mark.parametrize('name', families(FAMILIES))
def test_logits_equal_those_of_transformers(name, tmp_path, hf):
  model = folder_of(hf, FAMILIES[name], tmp_path / 'hf')
  layout = 't5' if name in ('qwen2', 'gemma2', 'olmo2') else 'scan'
  config, params = base_of(tmp_path / 'hf', tmp_path / 'base', layout)
  assert np.abs(logits_of(hf, model, token_ids(1, LENGTH))).max() > 1
  check_rows(hf, model, config, params)
  check_cache(hf, model, config, params)
  # Version 5 spells the same model otherwise.
  hf_config = json.loads((tmp_path / 'hf' / 'config_5.json').read_text())
  assert decoder_base.from_hf(hf_config, layout) == config


@pytest.mark.hf
@pytest.mark.slow
@pytest.mark.parametrize('name', WRONG)
def test_a_wrong_option_would_be_seen(name, tmp_path, hf):
  model = folder_of(hf, FAMILIES[name], tmp_path / 'hf')
  config, params = base_of(tmp_path / 'hf', tmp_path / 'base', 'scan')
  tokens = token_ids(1, LENGTH)
  expected = logits_of(hf, model, tokens)
  logits = apply(config.replace(**WRONG[name]), params, tokens)
  assert np.abs(logits - expected).max() > 0.02 * np.abs(expected).max()


@pytest.mark.hf
@pytest.mark.slow
def test_long_rows_take_the_other_frequencies(tmp_path, hf):
  row = {**FAMILIES['phi4_mini'], 'original_max_position_embeddings': 16}
  model = folder_of(hf, row, tmp_path / 'hf')
  config, params = base_of(tmp_path / 'hf', tmp_path / 'base', 'scan')
  tokens = token_ids(1, LENGTH)
  with refusals.refused('rotary.Scaling.length', 16, LENGTH):
    apply(config, params, tokens)
  scaling = dataclasses.replace(config.rope_scaling, length=LENGTH)
  logits = apply(config.replace(rope_scaling=scaling), params, tokens)
  assert_close(logits, logits_of(hf, model, tokens), 'long')


@pytest.mark.slow
@pytest.mark.parametrize('version', [4, 5])
def test_of_a_model_that_reads_images_the_decoder_is_taken(tmp_path, version):
  text = {
      **SIZES, **FAMILIES['gemma3'], 'tie_word_embeddings': True,
      'rms_norm_eps': 1e-6,
  }
  entries = decoder_base.entries(decoder_base.from_hf(text), 't5')
  rng = np.random.default_rng(0)
  tensors = {
      name: rng.normal(size=entry.hf_shape).astype(np.float32)
      for entry in entries for name in entry.sources
  }
  prefix = {4: 'language_model.model.', 5: 'model.language_model.'}[version]
  outer = {
      prefix + name.removeprefix('model.'): x for name, x in tensors.items()
  }
  outer[{4: '', 5: 'model.'}[version] + 'vision_tower.x.weight'] = np.ones(
      3, np.float32
  )
  config = {'model_type': 'gemma3', 'text_config': text, 'eos_token_id': [1, 2]}
  import_decoder_test.write_model(tmp_path / 'image', config, outer)
  import_decoder_test.write_model(tmp_path / 'text', text, tensors)
  one, params = base_of(tmp_path / 'image', tmp_path / 'base1', 't5')
  two, expected = base_of(tmp_path / 'text', tmp_path / 'base2', 't5')
  assert one == two
  jax.tree.map(np.testing.assert_array_equal, params, expected)
