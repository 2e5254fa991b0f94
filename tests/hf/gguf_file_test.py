# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Names and rotary layout of GGUF files."""

import numpy as np
import pytest

from moe_peft.hf import decoder_base
from moe_peft.hf import entries as entries_lib
from moe_peft.hf import families
from moe_peft.hf import gguf_config
from moe_peft.hf import gguf_file
from moe_peft.hf import gguf_names
from moe_peft.hf import import_base
from moe_peft.hf import token_ids
from moe_peft.models import rotary
from moe_peft.training import bases
from tests.hf import import_decoder_test
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
  assert gguf_names.hf_name(name, 'llama') == want


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


_SIZES = {
    'vocab_size': 48, 'hidden_size': 24, 'intermediate_size': 40,
    'num_hidden_layers': 2, 'num_attention_heads': 4,
    'num_key_value_heads': 2, 'head_dim': 8, 'rms_norm_eps': 1e-6,
    'max_position_embeddings': 128, 'rope_theta': 5e5,
    'tie_word_embeddings': True,
}
_FAMILIES = {
    'llama': {'model_type': 'llama', 'attention_bias': True},
    'qwen2': {'model_type': 'qwen2'},
    'qwen3': {'model_type': 'qwen3'},
    'gemma2': {
        'model_type': 'gemma2', 'sliding_window': 16,
        'query_pre_attn_scalar': 8,
    },
    'gemma3': {
        'model_type': 'gemma3_text', 'sliding_window': 16,
        'query_pre_attn_scalar': 8,
        'rope_scaling': {'rope_type': 'linear', 'factor': 8.0},
    },
    'olmo2': {'model_type': 'olmo2'},
    'granite': {
        'model_type': 'granite', 'embedding_multiplier': 3.0,
        'attention_multiplier': 0.25, 'residual_multiplier': 0.5,
        'logits_scaling': 2.0,
    },
    'smollm3': {'model_type': 'smollm3', 'num_hidden_layers': 4},
    'phi3': {
        'model_type': 'phi3', 'sliding_window': 16,
        'partial_rotary_factor': 0.5, 'original_max_position_embeddings': 32,
        'rope_scaling': {
            'rope_type': 'longrope', 'factor': 4.0, 'attention_factor': 1.25,
            'short_factor': [1.0, 1.5], 'long_factor': [2.0, 5.0],
        },
    },
}


def write_own(gguf, writer, config):
  """What one family alone has, in the converter's words."""
  scaling = config.get('rope_scaling', {})
  if scaling.get('rope_type') == 'linear':
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(scaling['factor'])
  if config['model_type'] == 'granite':
    writer.add_attention_scale(config['attention_multiplier'])
    writer.add_embedding_scale(config['embedding_multiplier'])
    writer.add_residual_scale(config['residual_multiplier'])
    writer.add_logit_scale(config['logits_scaling'])
  if config['model_type'] == 'phi3':
    writer.add_rope_dimension_count(config['head_dim'] // 2)
    writer.add_rope_scaling_orig_ctx_len(
        config['original_max_position_embeddings']
    )
    writer.add_rope_scaling_attn_factors(scaling['attention_factor'])
    for length in ('short', 'long'):
      factors = np.asarray(scaling[f'{length}_factor'], np.float32)
      writer.add_tensor(f'rope_factors_{length}.weight', factors)


def write_family(file, architecture, config, tensors):
  """A file as llama.cpp's converter writes it; norms hold what they add."""
  gguf = pytest.importorskip('gguf')
  writer = gguf.GGUFWriter(file, architecture)
  writer.add_block_count(config['num_hidden_layers'])
  writer.add_context_length(config['max_position_embeddings'])
  writer.add_embedding_length(config['hidden_size'])
  writer.add_feed_forward_length(config['intermediate_size'])
  writer.add_head_count(config['num_attention_heads'])
  writer.add_head_count_kv(config['num_key_value_heads'])
  writer.add_key_length(config['head_dim'])
  writer.add_value_length(config['head_dim'])
  writer.add_layer_norm_rms_eps(config['rms_norm_eps'])
  writer.add_rope_freq_base(config['rope_theta'])
  writer.add_vocab_size(config['vocab_size'])
  if 'sliding_window' in config:
    writer.add_sliding_window(config['sliding_window'])
  write_own(gguf, writer, config)
  names = gguf.get_tensor_name_map(
      gguf.MODEL_ARCH[architecture.upper()], config['num_hidden_layers']
  )
  for name, array in tensors.items():
    module = name.split('.')[-2]
    heads = {'q_proj': 4, 'k_proj': 2}.get(module)
    # Neighbors are turned together.
    if heads and architecture in ('llama', 'granite', 'smollm3'):
      shape = (heads, 2, -1, *array.shape[1:])
      array = array.reshape(shape).swapaxes(1, 2).reshape(array.shape)
    if architecture.startswith('gemma') and name.endswith('norm.weight'):
      array = array + np.float32(1)
    writer.add_tensor(
        names.get_name(name, try_suffixes=('.weight', '.bias')),
        np.ascontiguousarray(array),
    )
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


@pytest.mark.parametrize('architecture', _FAMILIES)
def test_a_file_gives_the_base_of_the_folder(tmp_path, architecture):
  config = {**_SIZES, **_FAMILIES[architecture]}
  rng = np.random.default_rng(0)
  entries = decoder_base.entries(decoder_base.from_hf(config), 't5')
  shapes, _ = decoder_base.joined(
      entries_lib.source_shapes(entries),
      families.FAMILIES[config['model_type']],
  )
  tensors = {
      name: rng.normal(size=shape).astype(np.float32)
      for name, shape in shapes.items()
  }
  write_family(tmp_path / 'model.gguf', architecture, config, tensors)
  import_decoder_test.write_model(tmp_path / 'hf', config, tensors)
  found = []
  for number, source in enumerate(('model.gguf', 'hf')):
    out = tmp_path / f'base{number}'
    ours = import_base.import_base(
        tmp_path / source, out, file_format='safetensors'
    )
    found.append((ours, bases.read_arrays(out)))
  (one, arrays), (two, expected) = found
  assert one.replace(norm_epsilon=two.norm_epsilon) == two
  assert arrays.keys() == expected.keys()
  for path, array in arrays.items():
    np.testing.assert_array_equal(array, expected[path], err_msg=path)


def metadata(architecture, **fields):
  fields = {
      'attention.head_count': 4, 'embedding_length': 32, 'vocab_size': 8,
      'block_count': 2, 'feed_forward_length': 40, 'context_length': 128,
      'attention.layer_norm_rms_epsilon': 1e-5, 'rope.freq_base': 5e5, **fields,
  }
  return gguf_config.Metadata(
      {
          'general.architecture': architecture,
          **{f'{architecture}.{name}': x for name, x in fields.items()},
      },
      'x.gguf',
  )


@pytest.mark.parametrize(('architecture', 'field', 'value'), [
    # Of a Granite that rotates nothing, of OLMo 3, of a scale elsewhere.
    ('granite', 'rope.scaling.finetuned', False),
    ('olmo2', 'attention.sliding_window', 64),
    ('qwen3', 'attention.scale', 0.5),
])
def test_what_is_another_model_is_refused(architecture, field, value):
  with refused('x.gguf', field, value):
    metadata(architecture, **{field: value}).hf_config(())


def test_any_part_of_a_head_may_be_rotated():
  for head_dim in range(2, 257, 2):
    for rotated in range(2, head_dim + 1, 2):
      config = metadata('phi3', **{
          'attention.key_length': head_dim,
          'attention.value_length': head_dim,
          'rope.dimension_count': rotated,
      }).hf_config(())
      assert decoder_base.from_hf(config).rotated == rotated


@pytest.mark.parametrize(('layers', 'length', 'said', 'window'), [
    (32, 4096, {}, 2047),
    (40, 4096, {}, 2047),
    (32, 4096, {'attention.sliding_window': 0}, 0),
    (32, 4096, {'attention.sliding_window': 64}, 64),
    (32, 131072, {}, 0),
    (24, 4096, {}, 0),
])
def test_old_files_of_phi_3_do_not_say_their_window(
    layers, length, said, window
):
  fields = metadata('phi3', block_count=layers, context_length=length, **said)
  assert decoder_base.from_hf(fields.hf_config(())).window == window


@pytest.mark.parametrize(
    ('fields', 'adds'),
    [
        ({'model': 'llama'}, True),
        ({'model': 'llama', 'add_bos_token': False}, False),
        ({'model': 'gpt2', 'pre': 'llama-bpe'}, True),
        ({'model': 'gpt2', 'pre': 'tekken', 'add_bos_token': False}, False),
        ({'model': 'gpt2', 'pre': 'qwen2'}, False),
    ],
)
def test_whether_rows_begin_with_bos_as_llama_cpp_reads_files(fields, adds):
  fields = {f'tokenizer.ggml.{name}': x for name, x in fields.items()}
  assert gguf_config.adds_bos(fields) == adds


@pytest.mark.parametrize(
    ('fields', 'ends'),
    [
        ({}, []),
        ({'eos_token_id': 1}, [1]),
        # As converters write Gemma and LLaMA 3.
        ({'eos_token_id': 1, 'eot_token_id': 3}, [1, 3]),
        ({'eos_token_id': 2, 'eot_token_id': 2, 'eom_token_id': 1}, [2, 1]),
        # As they write Phi-3.
        ({'eos_token_id': 1, 'tokens': ['a', '<|endoftext|>', '<|end|>']},
         [1, 2]),
        ({'eos_token_id': 1, 'tokens': 'nothing'}, [1]),
        ({'eos_token_id': 1, 'eot_token_id': 2**32 - 1}, [1]),
        ({'eos_token_id': 1, 'eot_token_id': 2, 'tokens': ['a', 'b']}, [1]),
    ],
)
def test_answers_end_where_turns_do(fields, ends):
  fields = {f'tokenizer.ggml.{name}': x for name, x in fields.items()}
  assert gguf_config.ends(fields) == ends


def test_the_base_of_a_file_ends_answers_where_turns_end(tmp_path):
  small = import_decoder_test.SMALL
  file = import_decoder_test.write_gguf(
      tmp_path / 'model.gguf', small, import_decoder_test.random_tensors(small),
      eos=2, eot=5,
  )
  out = tmp_path / 'base'
  import_base.import_base(file, out, file_format='safetensors')
  hf_config = import_base.read_hf_config(out)
  assert token_ids.read(out, hf_config, small['vocab_size']).ends == (2, 5)


def test_factors_of_short_rows_alone_are_refused():
  with refused('x.gguf', 'rope_factors_long'):
    metadata('phi3').hf_config((), {'rope_factors_short.weight': [1.0] * 4})


def test_frequencies_of_llama_3_are_divided_by_a_tensor():
  scaling = rotary.Scaling('llama3', 8.0, original_length=16)
  expected = rotary.frequencies(5e5, 8, scaling)
  factors = rotary.frequencies(5e5, 8) / expected
  config = metadata('llama').hf_config(
      (), {'rope_freqs.weight': factors.astype(float).tolist()}
  )
  read = decoder_base.from_hf(config)
  assert read.rope_scaling.amplitude == 1.0
  np.testing.assert_allclose(
      rotary.frequencies(5e5, 8, read.rope_scaling), expected, rtol=1e-6
  )
