# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Imported bases compute what transformers computes; bad folders are named."""

import json
import tracemalloc

import gin
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from moe_peft import gin_files
from moe_peft.core import trainable
from moe_peft.hf import entries
from moe_peft.hf import import_base
from moe_peft.models import t5
from moe_peft.training import bases
from tests import refusals
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
  params = bases.load_base(str(tmp_path / 'base'), shapes_of(ours))
  # Long enough for the last bucket of the relative positions.
  encoder, decoder = models.token_ids(config['vocab_size'], 150, 140)
  theirs = torch_logits(hf, folder, encoder, decoder)
  difference = np.abs(jax_logits(ours, params, encoder, decoder) - theirs)
  assert np.abs(theirs).max() > 1
  assert difference.max() < 1e-5 * np.abs(theirs).max()


@pytest.mark.slow
@pytest.mark.hf
def test_wrong_conversions_differ_by_whole_logits(tmp_path, hf):
  config = models.SMALL
  folder = models.write_model(
      tmp_path / 'hf', config, models.random_tensors(config)
  )
  ours = import_base.import_base(folder, tmp_path / 'base')
  params = bases.load_base(str(tmp_path / 'base'), shapes_of(ours))
  encoder, decoder = models.token_ids(config['vocab_size'])
  theirs = torch_logits(hf, folder, encoder, decoder)
  attention = 'encoder/layers_0/attention'
  mlp = 'decoder/layers_1/mlp'
  for one, two in (
      (f'{attention}/query/kernel', f'{attention}/key/kernel'),
      (f'{mlp}/wi_0/kernel', f'{mlp}/wi_1/kernel'),
      (
          'encoder/relpos_bias/rel_embedding',
          'decoder/relpos_bias/rel_embedding',
      ),
  ):
    swapped = {**params, one: params[two], two: params[one]}
    difference = jax_logits(ours, swapped, encoder, decoder) - theirs
    assert np.abs(difference).max() > 0.05, one


@pytest.mark.slow
@pytest.mark.hf
@pytest.mark.parametrize('own_head', [True, False])
def test_heads_written_by_transformers_5(tmp_path, hf, own_head):
  """Tied or not, scaled or not: the four cases of the output layer."""
  for scaled in (True, False):
    config = {
        **models.SMALL,
        'tie_word_embeddings': True,
        'scale_decoder_outputs': scaled,
    }
    tensors = models.random_tensors({**config, 'tie_word_embeddings': own_head})
    tensors.pop('lm_head.weight', None)
    if own_head:
      head = np.random.default_rng(1).normal(0, 1, (96, 24))
      tensors['lm_head.weight'] = head.astype(np.float32)
    name = f'{scaled}'
    folder = models.write_model(tmp_path / name / 'hf', config, tensors)
    ours = import_base.import_base(folder, tmp_path / name / 'base')
    assert ours.logits_via_embedding == (scaled and not own_head)
    params = bases.load_base(
        str(tmp_path / name / 'base'), shapes_of(ours)
    )
    encoder, decoder = models.token_ids(config['vocab_size'])
    theirs = torch_logits(hf, folder, encoder, decoder)
    logits = jax_logits(ours, params, encoder, decoder)
    # Unscaled outputs reach ten, and float32 rounds by their size.
    bound = 1e-5 * max(1.0, np.abs(theirs).max())
    np.testing.assert_allclose(logits, theirs, atol=bound)


def test_pickled_files_are_refused(tmp_path):
  folder = models.write_model(tmp_path / 'hf', models.SMALL, {})
  (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')
  with refusals.refused(folder, 'pytorch_model.bin', 'save_pretrained'):
    import_base.import_base(folder, tmp_path / 'base')


def read(folder):
  """All parameters of an imported base."""
  return bases.read_arrays(folder)


def shard(folder, dtype=np.float32):
  """Splits the weights of a folder over two files."""
  file = folder / 'model.safetensors'
  tensors = safetensors_numpy.load_file(file)
  names = sorted(tensors)
  parts = {'one.safetensors': names[::2], 'two.safetensors': names[1::2]}
  for part, members in parts.items():
    safetensors_numpy.save_file(
        {name: tensors[name].astype(dtype) for name in members}, folder / part
    )
  weight_map = {n: part for part, members in parts.items() for n in members}
  (folder / 'model.safetensors.index.json').write_text(
      json.dumps({'weight_map': weight_map})
  )
  file.unlink()


@pytest.mark.parametrize('file_format', import_base.FORMATS)
def test_shards_in_bfloat16(tmp_path, file_format):
  tensors = models.random_tensors(models.SMALL)
  folder = models.write_model(tmp_path / 'hf', models.SMALL, tensors)
  shard(folder, ml_dtypes.bfloat16)
  import_base.import_base(folder, tmp_path / 'base', file_format=file_format)
  params = read(tmp_path / 'base')
  kernel = params['decoder/layers_2/encoder_decoder_attention/out/kernel']
  source = tensors['decoder.block.2.layer.1.EncDecAttention.o.weight']
  assert kernel.dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(kernel, source.astype(ml_dtypes.bfloat16).T)


def test_layouts_hold_the_same_numbers(tmp_path):
  tensors = models.random_tensors(models.SMALL)
  folder = models.write_model(tmp_path / 'hf', models.SMALL, tensors)
  params = {}
  for layout in entries.LAYOUTS:
    out = tmp_path / layout
    import_base.import_base(folder, out, layout, 'safetensors')
    params[layout] = read(out)
  flat, scan, unrolled = (params[k] for k in entries.LAYOUTS)
  path = 'decoder/layers_1/self_attention/query/kernel'
  tail = path.removeprefix('decoder/layers_1/')
  assert flat[path].shape == (24, 48)
  assert unrolled[path].shape == (24, 3, 16)
  assert scan[f'decoder/decoder/{tail}'].shape == (24, 3, 3, 16)
  np.testing.assert_array_equal(
      flat[path].reshape(24, 3, 16), unrolled[path]
  )
  for stack, count in (('encoder', 2), ('decoder', 3)):
    for index in range(count):
      np.testing.assert_array_equal(
          unrolled[f'{stack}/layers_{index}/relpos_bias/rel_embedding'],
          flat[f'{stack}/relpos_bias/rel_embedding'],
      )
  # Split again, the scanned layout is the unrolled one.
  split = entries.unstack(scan)
  assert sorted(split) == sorted(unrolled)
  for name, array in unrolled.items():
    np.testing.assert_array_equal(split[name], array, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize('file_format', import_base.FORMATS)
def test_tensors_are_streamed(tmp_path, file_format):
  config = {**models.SMALL, 'd_ff': 20_000, 'd_model': 64, 'vocab_size': 500}
  tensors = models.random_tensors(config)
  size = sum(x.nbytes for x in tensors.values())
  folder = models.write_model(tmp_path / 'hf', config, tensors)
  del tensors
  tracemalloc.start()
  import_base.import_base(folder, tmp_path / 'base', 't5', file_format)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert size > 50e6
  assert peak < 0.4 * size


def test_the_model_file_describes_the_base(tmp_path):
  config = {**models.CONFIGS['mt5'], 'num_heads': 5}
  folder = models.write_model(
      tmp_path / 'hf', config, models.random_tensors(config)
  )
  (folder / 'spiece.model').write_bytes(b'pieces')
  (folder / 'tokenizer_config.json').write_text('{}')
  ours = import_base.import_base(
      folder, tmp_path / 'base', 'scan', hub_id='google/mt5-nano'
  )
  base = tmp_path / 'base'
  assert (base / 'spiece.model').read_bytes() == b'pieces'
  assert (base / 'tokenizer_config.json').is_file()
  assert import_base.read_source(base)['base_model'] == 'google/mt5-nano'
  main = tmp_path / 'main.gin'
  main.write_text(
      f"include '{base}/model.gin'\ninclude 'gin/methods/lora.gin'\n"
  )
  gin_files.load_gin([str(main)])
  transformer = gin.get_configurable(t5.Transformer)()
  described = transformer.config.replace(
      dtype=ours.dtype, dropout_rate=ours.dropout_rate
  )
  assert described == ours
  gin.clear_config()


def test_the_embedding_may_have_any_of_its_names(tmp_path):
  tensors = models.random_tensors(models.SMALL)
  embedding = tensors.pop('shared.weight')
  tensors['encoder.embed_tokens.weight'] = embedding
  tensors['decoder.embed_tokens.weight'] = embedding.copy()
  folder = models.write_model(tmp_path / 'hf', models.SMALL, tensors)
  import_base.import_base(folder, tmp_path / 'base', 't5', 'safetensors')
  np.testing.assert_array_equal(
      read(tmp_path / 'base')[entries.EMBEDDING], embedding
  )
  tensors['decoder.embed_tokens.weight'][3, 4] += 1
  models.write_model(folder, models.SMALL, tensors)
  with refusals.refused('decoder.embed_tokens.weight', 'encoder.embed_tokens'):
    import_base.import_base(folder, tmp_path / 'other')


def spoil(folder, config, tensors, how):
  """Makes a folder that cannot be imported."""
  query = 'encoder.block.1.layer.0.SelfAttention.q.weight'
  if how == 'missing':
    del tensors[query]
  elif how == 'unused':
    tensors['encoder.block.9.layer.0.SelfAttention.q.weight'] = np.ones(3)
    tensors = {k: v.astype(np.float32) for k, v in tensors.items()}
  elif how == 'shape':
    tensors[query] = np.ascontiguousarray(tensors[query].T)
  elif how == 'quantized':
    tensors[query] = tensors[query].astype(np.int8)
  elif how == 'qwen3_moe':
    config = {**config, 'model_type': 'qwen3_moe'}
  elif how == 'activation':
    config = {**config, 'feed_forward_proj': 'gelu'}
  elif how == 'parts':
    config = {**config, 'dense_act_fn': 'relu'}
  elif how == 'sizes':
    config = {k: v for k, v in config.items() if k != 'd_kv'}
  elif how == 'text':
    config = {**config, 'd_model': '24\nimport os'}
  elif how == 'epsilon':
    config = {**config, 'layer_norm_epsilon': 1e-5}
  models.write_model(folder, config, tensors)
  weights = folder / 'model.safetensors'
  if how == 'truncated':
    weights.write_bytes(weights.read_bytes()[:-100])
  elif how == 'no weights':
    weights.unlink()
  elif how == 'no config':
    (folder / 'config.json').unlink()
  elif how == 'broken config':
    (folder / 'config.json').write_text('{')
  elif how in ('index list', 'shard outside'):
    weight_map = [] if how == 'index list' else {query: f'../{weights.name}'}
    weights.unlink()
    (folder / 'model.safetensors.index.json').write_text(
        json.dumps({'weight_map': weight_map})
    )


@pytest.mark.parametrize(
    ('how', 'where', 'names'),
    [
        ('missing', 'config.json', ('missing: encoder.block.1.layer.0',)),
        ('unused', 'config.json', ('not in the model: encoder.block.9',)),
        ('shape', 'config.json', ('q.weight is (24, 48)', '(48, 24)')),
        ('quantized', '{folder}', ('quantized', 'I8')),
        ('qwen3_moe', 'model_type', ("'qwen3_moe'", 'llama', 'experts')),
        ('activation', 'feed_forward_proj', ("'gelu'", 'gated-gelu')),
        ('parts', 'dense_act_fn', ("'relu'", "'gelu_new'")),
        ('sizes', 'config.json', ('d_kv',)),
        ('text', 'd_model', ('import os',)),
        ('epsilon', 'layer_norm_epsilon', ('1e-05', '1e-06')),
        ('truncated', '{folder}/model.safetensors', ('truncated',)),
        ('no weights', '{folder}', ('model.safetensors',)),
        ('no config', '{folder}', ('config.json',)),
        ('broken config', '{folder}/config.json', ()),
        ('index list', '{folder}/model.safetensors.index.json', ()),
        ('shard outside', '{folder}/model.safetensors.index.json', ()),
    ],
)
def test_bad_folders_are_named_and_leave_nothing(tmp_path, how, where, names):
  folder = tmp_path / 'hf'
  spoil(folder, models.SMALL, models.random_tensors(models.SMALL), how)
  with refusals.refused(where.format(folder=folder), *names):
    import_base.import_base(folder, tmp_path / 'base')
  assert [path.name for path in tmp_path.iterdir()] == ['hf']
