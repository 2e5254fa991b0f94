# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every file of gin/models parses and builds the model it names."""

import math
import pathlib

import gin
import jax
import jax.numpy as jnp
import pytest

from moe_peft.core import inject
from tests.hf import published_sizes_test

ROOT = pathlib.Path(__file__).parents[2]

# vocab, emb, heads, encoder and decoder layers, mlp, MLP inputs, tied; and the
# parameters of the published model, in its own name for the size.
MODELS = {
    'tiny_t5': (384, 128, 4, 3, 3, 384, 2, False, None),
    't5_small': (32128, 512, 8, 6, 6, 2048, 1, True, 60_506_624),
    't5_base': (32128, 768, 12, 12, 12, 3072, 1, True, 222_903_552),
    't5_1_1_small': (32128, 512, 6, 8, 8, 1024, 2, False, 76_961_152),
    't5_1_1_base': (32128, 768, 12, 12, 12, 2048, 2, False, 247_577_856),
    't5_1_1_large': (32128, 1024, 16, 24, 24, 2816, 2, False, 783_150_080),
    't5_1_1_xl': (32128, 2048, 32, 24, 24, 5120, 2, False, 2_849_757_184),
    't5_1_1_xxl': (32128, 4096, 64, 24, 24, 10240, 2, False, 11_135_332_352),
    'mt5_base': (250112, 768, 12, 12, 12, 2048, 2, False, 582_401_280),
    'byt5_base': (384, 1536, 12, 18, 6, 3968, 2, False, 581_653_248),
}


# vocab, emb, heads, heads of keys and values, layers, head_dim, mlp.
LLAMAS = {
    'tiny_llama': (384, 128, 4, 2, 4, 32, 384, None),
}


def num_parameters(
    vocab, emb, heads, encoder_layers, decoder_layers, mlp, branches, tied
):
  """Counts by hand: attention 4 kernels, MLP branches + 1, norms, positions."""
  head_dim = 32 if emb == 128 else 64
  attention = 4 * emb * heads * head_dim
  feed_forward = (branches + 1) * emb * mlp
  encoder = encoder_layers * (attention + feed_forward + 2 * emb)
  decoder = decoder_layers * (2 * attention + feed_forward + 3 * emb)
  positions, final_norms = 2 * 32 * heads, 2 * emb
  embeddings = (1 if tied else 2) * vocab * emb
  return encoder + decoder + positions + final_norms + embeddings


@gin.configurable
def model_of(module, vocabulary, model):
  assert model.module == module
  assert model.output_vocabulary is not None
  return module, vocabulary


@pytest.fixture
def parse():
  """Parses a file of gin/models plus bindings."""
  gin.add_config_file_search_path(str(ROOT))

  def run(name, *bindings):
    gin.clear_config()
    gin.parse_config_files_and_bindings(
        [f'gin/models/{name}.gin'],
        [
            'ADAPTER_RULES = ()',
            'LOSS_FACTORS = {}',
            'model_of.module = %MODULE',
            'model_of.vocabulary = %VOCABULARY',
            'model_of.model = %MODEL',
            *bindings,
        ],
    )
    return model_of()

  yield run
  gin.clear_config()


def variable_shapes(module):
  tokens = jnp.ones((1, 4), jnp.int32)
  return jax.eval_shape(
      lambda: module.init(
          jax.random.key(0), tokens, tokens, tokens, enable_dropout=False
      )
  )


def count(params):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def test_the_table_names_every_file():
  files = {path.stem for path in (ROOT / 'gin/models').glob('*.gin')}
  files = {name for name in files if not name.startswith('t5x_')}
  architectures = {'t5_architecture', 'decoder_architecture'}
  published = published_sizes_test.MODELS.keys()
  assert files == set(MODELS) | set(LLAMAS) | published | architectures


@pytest.mark.parametrize('name', MODELS)
def test_builds_with_the_published_number_of_parameters(parse, name):
  module, _ = parse(name)
  assert isinstance(module, inject.AdaptedModule)
  *sizes, published = MODELS[name]
  total = count(variable_shapes(module)['params'])
  assert total == num_parameters(*sizes)
  if published is not None:
    assert total == published


@pytest.mark.parametrize('name', MODELS)
def test_options_reach_the_network(parse, name):
  module, _ = parse(
      name,
      'SCAN_LAYERS = True',
      "REMAT_POLICY = 'minimal'",
      'DROPOUT_RATE = 0.25',
      "ACTIVATION_DTYPE = 'float32'",
  )
  config = module.module.config
  assert (config.scan_layers, config.remat_policy) == (True, 'minimal')
  assert (config.dropout_rate, config.dtype) == (0.25, 'float32')
  vocab, emb, heads, encoder, decoder, mlp, branches, tied, _ = MODELS[name]
  extra = 32 * heads * (encoder + decoder - 2)  # One position bias per layer.
  total = count(variable_shapes(module)['params'])
  assert total == extra + num_parameters(
      vocab, emb, heads, encoder, decoder, mlp, branches, tied
  )


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('name', LLAMAS)
def test_llamas_have_the_published_number_of_parameters(parse, name, scan):
  module, _ = parse(name, f'SCAN_LAYERS = {scan}')
  vocab, emb, heads, kv_heads, num_layers, head_dim, mlp, total = LLAMAS[name]
  tokens = jnp.ones((1, 4), jnp.int32)
  shapes = jax.eval_shape(
      lambda: module.init(
          jax.random.key(0), tokens, tokens, enable_dropout=False
      )
  )['params']
  attention = 2 * emb * (heads + kv_heads) * head_dim
  layer = attention + 3 * emb * mlp + 2 * emb
  by_hand = vocab * emb + num_layers * layer + emb
  assert count(shapes) == by_hand
  assert total in (None, by_hand)


@pytest.mark.parametrize('name', ['tiny_t5', 'byt5_base', 'tiny_llama'])
def test_byte_vocabulary_fills_the_embedding(parse, name):
  module, vocabulary = parse(name)
  assert vocabulary.vocab_size == module.module.config.vocab_size


@pytest.mark.parametrize(
    'name,file', [('t5_1_1_xl', 'cc_all.32000'), ('mt5_base', 'mc4.250000')]
)
def test_sentencepiece_vocabulary_is_the_published_one(parse, name, file):
  _, vocabulary = parse(name)  # Not opened before it is used.
  assert file in vocabulary.sentencepiece_model_file
  _, vocabulary = parse(name, "VOCABULARY_FILE = '/my/own.model'")
  assert vocabulary.sentencepiece_model_file == '/my/own.model'
