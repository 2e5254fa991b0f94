# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Both spellings of rotary positions mean the same model."""

import dataclasses

import numpy as np
import pytest

from moe_peft.hf import decoder_base
from moe_peft.hf import families
from moe_peft.hf import gguf_config
from moe_peft.hf import rope_config
from moe_peft.models import rotary
from tests import refusals

_PLAIN = {
    'model_type': 'llama', 'vocab_size': 64, 'hidden_size': 32,
    'intermediate_size': 40, 'num_hidden_layers': 2, 'num_attention_heads': 4,
    'max_position_embeddings': 64, 'rms_norm_eps': 1e-5,
}
_YARN = {
    'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 16,
}
# The same model, as version 4 and version 5 write it.
SPELLINGS = {
    'plain': ({'rope_theta': 5e5}, {'rope_type': 'default', 'rope_theta': 5e5}),
    'yarn': (
        {'rope_theta': 5e5, 'rope_scaling': _YARN},
        {**_YARN, 'rope_theta': 5e5},
    ),
    'older name': (
        {'rope_scaling': {'type': 'linear', 'factor': 2.0}},
        {'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 1e4},
    ),
    'partial': (
        {'model_type': 'phi3', 'partial_rotary_factor': 0.5},
        {'rope_theta': 1e4, 'partial_rotary_factor': 0.5},
    ),
    'phi3': (
        {
            'model_type': 'phi3', 'original_max_position_embeddings': 32,
            'rope_scaling': {
                'type': 'su', 'short_factor': [1.0] * 4, 'long_factor': [2] * 4,
            },
        },
        {
            'rope_type': 'longrope', 'rope_theta': 1e4,
            'short_factor': [1.0] * 4, 'long_factor': [2] * 4,
        },
    ),
    'gemma3': (
        {
            'model_type': 'gemma3_text', 'rope_theta': 5e5,
            'rope_local_base_freq': 2e4, 'sliding_window': 8,
            'rope_scaling': {'rope_type': 'linear', 'factor': 8.0},
        },
        {
            'full_attention': {
                'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 5e5,
            },
            'sliding_attention': {'rope_type': 'default', 'rope_theta': 2e4},
        },
    ),
}


@pytest.mark.parametrize('name', SPELLINGS)
def test_both_spellings_are_read_and_written(name):
  old, new = SPELLINGS[name]
  config = decoder_base.from_hf({**_PLAIN, **old})
  names = ('rope_theta', 'rope_scaling', 'rope_local_base_freq')
  rest = {k: v for k, v in old.items() if k not in names}
  assert decoder_base.from_hf(
      {**_PLAIN, **rest, 'rope_parameters': new}
  ) == config
  written = decoder_base.to_hf(
      config, {**_PLAIN, **rest, 'rope_parameters': new}
  )
  assert decoder_base.from_hf(written) == config
  # Each version finds its own.
  rest = {k: v for k, v in written.items() if k != 'rope_parameters'}
  assert decoder_base.from_hf(rest) == config
  only = {k: v for k, v in written.items() if k not in names}
  assert decoder_base.from_hf(only) == config


def test_windows_that_share_theta_are_not_scaled():
  """OLMo 3: yarn reaches the full layers only."""
  fields = families.fields_of({
      **_PLAIN, 'model_type': 'olmo3', 'rope_theta': 5e5, 'rope_scaling': _YARN
  })
  options = rope_config.options(fields)
  assert options['local_rope_theta'] == options['rope_theta'] == 5e5
  assert options['rope_scaling'].factor == 4.0


def test_amplitudes_are_those_that_were_published():
  yarn = rotary.Scaling('yarn', factor=8.0, original_length=8192)
  np.testing.assert_allclose(yarn.amplitude, 1.20794, atol=1e-5)
  phi = rotary.Scaling('longrope', factor=32.0, original_length=4096)
  np.testing.assert_allclose(phi.amplitude, 1.19024, atol=1e-5)
  given = dataclasses.replace(phi, attention_factor=1.5)
  assert given.amplitude == 1.5


@pytest.mark.parametrize('kind', ['dynamic', 'longrope'])
def test_rows_of_another_length_than_the_job_says_are_refused(kind):
  scaling = rotary.Scaling(
      kind, 4.0, 16, short_factors=(1.0, 1.0), long_factors=(2.0, 4.0)
  )
  scaling.check_length(16)
  with refusals.refused('rotary.Scaling.length', 17, 16):
    scaling.check_length(17)
  longer = dataclasses.replace(scaling, length=64)
  longer.check_length(64)
  short = rotary.frequencies(100.0, 4, scaling)
  assert (rotary.frequencies(100.0, 4, longer)[1:] < short[1:]).all()


def test_metadata_of_positions_that_is_unknown_is_refused():
  fields = {
      'general.architecture': 'qwen3', 'qwen3.attention.head_count': 4,
      'qwen3.embedding_length': 32, 'qwen3.rope.scaling.new': 2.0,
  }
  with refusals.refused('x.gguf', 'rope.scaling.new', 2.0):
    gguf_config.Metadata(fields, 'x.gguf').hf_config(())
