# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Imported LLaMAs compute what transformers computes, from folders and GGUF."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from moe_peft import errors
from moe_peft import gin_files
from moe_peft.core import trainable
from moe_peft.hf import import_base
from moe_peft.models import decoder
from moe_peft.training import bases
from tests import refusals
from tests import small_tokenizers as tokenizers

SMALL = {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    'vocab_size': 96,
    'hidden_size': 24,
    'intermediate_size': 40,
    'num_hidden_layers': 3,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'head_dim': 8,  # 4 heads of 8 are not 24: a missing transpose is an error.
    'rms_norm_eps': 1e-5,
    'rope_theta': 500.0,
    'hidden_act': 'silu',
    'tie_word_embeddings': False,
    'bos_token_id': 1,
    'eos_token_id': 2,
}


def random_tensors(config, seed=0):
  """Tensors of the size that training leaves, by Hugging Face name."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape, std=0.2: rng.normal(0, std, shape).astype(np.float32)
  embed, hidden = config['hidden_size'], config['intermediate_size']
  queries = config['num_attention_heads'] * config['head_dim']
  keys = config['num_key_value_heads'] * config['head_dim']
  vocab_size = config['vocab_size']
  tensors = {
      'model.embed_tokens.weight': normal(vocab_size, embed, std=1.0),
      'model.norm.weight': 1 + normal(embed),
  }
  if not config['tie_word_embeddings']:
    tensors['lm_head.weight'] = normal(vocab_size, embed, std=0.5)
  for layer in range(config['num_hidden_layers']):
    for name, shape in (
        ('self_attn.q_proj', (queries, embed)),
        ('self_attn.k_proj', (keys, embed)),
        ('self_attn.v_proj', (keys, embed)),
        ('self_attn.o_proj', (embed, queries)),
        ('mlp.gate_proj', (hidden, embed)),
        ('mlp.up_proj', (hidden, embed)),
        ('mlp.down_proj', (embed, hidden)),
        ('input_layernorm', (embed,)),
        ('post_attention_layernorm', (embed,)),
    ):
      mean = 1 if name.endswith('layernorm') else 0
      tensors[f'model.layers.{layer}.{name}.weight'] = mean + normal(*shape)
  return tensors


def write_model(folder, config, tensors):
  folder.mkdir(parents=True)
  (folder / 'config.json').write_text(json.dumps(config))
  safetensors_numpy.save_file(
      tensors, folder / 'model.safetensors', metadata={'format': 'pt'}
  )
  return folder


def jax_logits(config, base, tokens):
  """Logits of our model in float32, with the parameters of a base."""
  module = decoder.Transformer(config)
  shapes = jax.eval_shape(
      lambda: module.init(
          jax.random.key(0), jnp.ones((1, 4), jnp.int32),
          jnp.ones((1, 4), jnp.int32), enable_dropout=False,
      )
  )
  params = bases.load_base(
      str(base), trainable.flatten(shapes['params'])
  )
  with jax.default_matmul_precision('highest'):
    return np.asarray(
        module.apply(
            {'params': trainable.unflatten(params)}, tokens, tokens,
            enable_dropout=False,
        )
    )


def torch_logits(torch, folder, tokens):
  import transformers

  model = transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.float32
  ).eval()
  with torch.no_grad():
    return model(input_ids=torch.tensor(tokens).long()).logits.numpy()


def token_ids(config, length=40):
  rng = np.random.default_rng(1)
  return rng.integers(0, config['vocab_size'], (2, length), dtype=np.int32)


@pytest.mark.hf
@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('layout', ['t5', 'scan'])
def test_logits_equal_those_of_transformers(tmp_path, hf, layout, tied):
  config = {**SMALL, 'tie_word_embeddings': tied}
  folder = write_model(tmp_path / 'hf', config, random_tensors(config))
  ours = import_base.import_base(folder, tmp_path / 'base', layout)
  tokens = token_ids(config)
  theirs = torch_logits(hf, folder, tokens)
  difference = jax_logits(ours, tmp_path / 'base', tokens) - theirs
  assert np.abs(theirs).max() > 1
  assert np.abs(difference).max() < 1e-5 * np.abs(theirs).max()


@pytest.mark.hf
@pytest.mark.parametrize('names', ['lm_head', 'lm_head embed_tokens'])
def test_a_tied_embedding_may_have_either_name(tmp_path, hf, names):
  """`save_model` of safetensors keeps the first name alone."""
  config = {**SMALL, 'tie_word_embeddings': True}
  tensors = random_tensors(config)
  embedding = tensors['lm_head.weight'] = tensors['model.embed_tokens.weight']
  if 'embed_tokens' not in names:
    del tensors['model.embed_tokens.weight']
  folder = write_model(tmp_path / 'hf', config, tensors)
  ours = import_base.import_base(folder, tmp_path / 'base')
  tokens = token_ids(config)
  theirs = torch_logits(hf, folder, tokens)
  difference = jax_logits(ours, tmp_path / 'base', tokens) - theirs
  assert np.abs(difference).max() < 1e-5 * np.abs(theirs).max()
  # Version 4 computes with the embedding, and version 5 with the other tensor.
  tensors['model.embed_tokens.weight'] = 2 * embedding
  other = write_model(tmp_path / 'other', config, tensors)
  with refusals.refused('tie_word_embeddings', 'lm_head.weight'):
    import_base.import_base(other, tmp_path / 'base1')


def write_gguf(file, config, tensors, architecture='llama', **ids):
  """A GGUF file as llama.cpp's converter writes it, in float32."""
  gguf = pytest.importorskip('gguf')
  writer = gguf.GGUFWriter(file, architecture)
  heads = config['num_attention_heads']
  writer.add_block_count(config['num_hidden_layers'])
  writer.add_embedding_length(config['hidden_size'])
  writer.add_feed_forward_length(config['intermediate_size'])
  writer.add_head_count(heads)
  writer.add_head_count_kv(config['num_key_value_heads'])
  writer.add_key_length(config['head_dim'])
  writer.add_layer_norm_rms_eps(config['rms_norm_eps'])
  writer.add_rope_freq_base(config['rope_theta'])
  writer.add_vocab_size(config['vocab_size'])
  for name, token_id in ids.items():
    getattr(writer, f'add_{name}_token_id')(token_id)
  names = gguf.get_tensor_name_map(
      gguf.MODEL_ARCH.LLAMA, config['num_hidden_layers']
  )
  for name, array in tensors.items():
    count = {'q_proj': heads, 'k_proj': config['num_key_value_heads']}.get(
        name.split('.')[-2]
    )
    if count:  # Neighbors are turned together.
      array = np.concatenate([
          np.stack(np.split(head, 2), axis=1).reshape(head.shape)
          for head in np.split(array, count)
      ])
    writer.add_tensor(
        names.get_name(name, try_suffixes=('.weight',)),
        np.ascontiguousarray(array),
    )
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return file


@pytest.mark.parametrize('tied', [False, True])
def test_gguf_files_give_the_same_base_as_folders(tmp_path, tied):
  config = {**SMALL, 'tie_word_embeddings': tied}
  tensors = random_tensors(config)
  file = write_gguf(tmp_path / 'model.gguf', config, tensors)
  folder = write_model(tmp_path / 'hf', config, tensors)
  written = []
  for number, source in enumerate((file, folder)):
    out = tmp_path / f'base{number}'
    ours = import_base.import_base(source, out, file_format='safetensors')
    assert ours.logits_via_embedding == tied
    written.append(safetensors_numpy.load_file(out / 'model.safetensors'))
  assert written[0].keys() == written[1].keys()
  for path, array in written[0].items():
    np.testing.assert_array_equal(array, written[1][path], err_msg=path)


def test_the_gin_file_describes_the_model(tmp_path):
  config = {**SMALL, 'tie_word_embeddings': True}
  folder = write_model(tmp_path / 'hf', config, random_tensors(config))
  tokenizers.word_level(['<pad>', '<s>', '</s>', 'a', 'b']).save(
      str(folder / 'tokenizer.json')
  )
  ours = import_base.import_base(folder, tmp_path / 'base', 'scan')
  gin_files.load_gin(
      [str(tmp_path / 'base' / 'model.gin'), 'gin/methods/lora.gin'],
      ["ACTIVATION_DTYPE = 'float32'"],
  )
  import gin

  model = gin.query_parameter('%MODEL').scoped_configurable_fn()
  config = model.module.module.config
  assert config.replace(dtype=ours.dtype) == ours
  assert model.input_vocabulary.eos_id == 2
  path = tmp_path / 'base' / 'tokenizer.json'
  assert model.input_vocabulary.tokenizer_file == str(path)


@pytest.mark.parametrize(
    ('changes', 'where', 'name'),
    [
        ({'attention_bias': 'qkv'}, 'attention_bias', "'qkv'"),
        ({'hidden_act': 'gelu'}, 'hidden_act', "'gelu'"),
        ({'rope_scaling': {'rope_type': 'ntk'}}, 'rope_type', "'ntk'"),
        (
            {'rope_scaling': {'rope_type': 'yarn', 'factor': 2.0}},
            'max_position_embeddings', 'None',
        ),
        ({'rope_scaling': {'rope_type': 'linear'}}, 'factor', 'None'),
        (
            {'rope_scaling': {'rope_type': 'default', 'mrope_section': [2]}},
            'rope_parameters.mrope_section', '[2]',
        ),
        ({'rope_parameters': {'rope_theta': 0.5}}, 'rope_theta', '0.5'),
        # Transformers rotates all of a head here, whatever the field says.
        ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor', '0.5'),
        (  # The exact one: that gelu means tanh is so of the first Gemma alone.
            {'model_type': 'gemma2', 'hidden_activation': 'gelu'},
            'hidden_activation', "'gelu'",
        ),
        (
            {'model_type': 'gemma3_text', 'layer_types': ['full_attention']},
            'layer_types', 'full_attention',
        ),
        (
            {'model_type': 'gemma3_text', 'use_bidirectional_attention': True},
            'use_bidirectional_attention', 'True',
        ),
        (
            {'model_type': 'gemma2', 'use_bidirectional_attention': True},
            'use_bidirectional_attention', 'True',
        ),
        (
            {'model_type': 'mistral', 'layer_types': ['sliding_attention']},
            'layer_types', 'sliding_attention',
        ),
        ({'model_type': 'olmo2', 'clip_qkv': 8.0}, 'clip_qkv', '8.0'),
        ({'model_type': 'gemma3'}, 'text_config', 'None'),
        (  # Of three layers, one alone.
            {'model_type': 'smollm3', 'no_rope_layers': [1]},
            'no_rope_layers', '[1]',
        ),
        ({'num_attention_heads': 0}, 'num_attention_heads', '0'),
        ({'eos_token_id': '2\nimport os'}, 'eos_token_id', 'import os'),
        ({'eos_token_id': 2.0}, 'eos_token_id', '2.0'),
        ({'num_hidden_layers': 2}, 'config.json', 'model: model.layers.2'),
        ({'num_hidden_layers': 4}, 'config.json', 'missing: model.layers.3'),
        ({'hidden_size': 32}, 'config.json', 'is (96, 24) there and (96, 32)'),
    ],
)
def test_models_that_are_not_ours_are_named(tmp_path, changes, where, name):
  tensors = random_tensors(SMALL)
  folder = write_model(tmp_path / 'hf', {**SMALL, **changes}, tensors)
  with refusals.refused(where, name):
    import_base.import_base(folder, tmp_path / 'base')
  assert [path.name for path in tmp_path.iterdir()] == ['hf']


def test_queries_must_share_keys_evenly(tmp_path):
  config = {**SMALL, 'num_key_value_heads': 3}
  folder = write_model(tmp_path / 'hf', config, random_tensors(SMALL))
  with pytest.raises(errors.UserError, match='3.*4'):
    import_base.import_base(folder, tmp_path / 'base')


def test_bad_gguf_files_are_named(tmp_path):
  tensors = random_tensors(SMALL)
  file = write_gguf(tmp_path / 'model.gguf', SMALL, tensors)
  other = write_gguf(tmp_path / 'other.gguf', SMALL, tensors, 'falcon')
  with refusals.refused(other, 'falcon', 'llama'):
    import_base.import_base(other, tmp_path / 'base')
  file.write_bytes(file.read_bytes()[:200])
  with refusals.refused(file, 'truncated'):
    import_base.import_base(file, tmp_path / 'base')
  assert not (tmp_path / 'base').exists()
