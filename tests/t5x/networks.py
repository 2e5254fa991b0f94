# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tiny gin configurations of the networks that adapters are tested on."""

import dataclasses

import pytest

# Divisible by the eight host devices.
_T5 = """
network.T5Config:
  emb_dim = 8
  num_heads = 8
  num_encoder_layers = 1
  num_decoder_layers = 1
  head_dim = 4
  mlp_dim = 16
"""
_OWN_T5 = """
ACTIVATION_DTYPE = 'float32'
SCAN_LAYERS = True
REMAT_POLICY = 'minimal'
t5.T5Config:
  emb_dim = 8
  num_heads = 8
  num_encoder_layers = 2
  num_decoder_layers = 2
  head_dim = 4
  mlp_dim = 16
"""
_DECODER_ONLY = """
VOCABULARY = @seqio.ByteVocabulary()
seqio.ByteVocabulary.extra_ids = 125
network.TransformerConfig:
  vocab_size = 384
  dtype = 'float32'
  emb_dim = 8
  num_heads = 8
  num_layers = 2
  head_dim = 4
  mlp_dim = 16
"""
_LLAMA = """
decoder_config.DecoderConfig:
  emb_dim = 8
  num_heads = 8
  num_kv_heads = 4
  num_layers = 2
  head_dim = 4
  mlp_dim = 16
"""
_FLAXFORMER = """
VOCABULARY = @seqio.ByteVocabulary()
seqio.ByteVocabulary.extra_ids = 125
ACTIVATION_DTYPE = 'float32'
NUM_EMBEDDINGS = 384
NUM_ENCODER_LAYERS = 1
NUM_DECODER_LAYERS = 1
NUM_HEADS = 8
HEAD_DIM = 4
EMBED_DIM = 8
MLP_DIM = 16
"""
# For tests that are not about sites: half of what there is to compile.
FEW_SITES = "SITES = '.*/(self_attention/query|mlp/wo)'\n"
_STOCK_MODEL = """
MODEL = @models.EncoderDecoderModel()
models.EncoderDecoderModel:
  module = @network.Transformer()
  input_vocabulary = %VOCABULARY
  output_vocabulary = %VOCABULARY
  optimizer_def = %OPTIMIZER
"""


@dataclasses.dataclass(frozen=True)
class Network:
  """A network in gin.

  Attributes:
    imports: Its imports.
    sizes: Files and bindings of its sizes.
    stock: What makes it a stock T5X model without adapters.
    adapted: File that puts adapters on it.
    tiny: Bindings that make it small.
    base: Name of the network whose checkpoint is its base, if not its own.
    package: The package whose gin files it includes.
  """

  imports: str
  sizes: str
  adapted: str
  tiny: str
  stock: str = ''
  base: str = ''
  package: str = 't5x'


NETWORKS = {
    'examples.t5': Network(
        imports='from t5x.examples.t5 import network',
        sizes='gin/models/t5x_tiny_t5.gin',
        adapted='gin/models/t5x_examples_t5.gin',
        tiny=_T5,
        stock=_STOCK_MODEL,
    ),
    'examples.scalable_t5': Network(
        imports='from t5x.examples.scalable_t5 import network',
        sizes='gin/models/t5x_tiny_scalable_t5.gin',
        adapted='gin/models/t5x_scalable_t5.gin',
        tiny=_T5.replace('layers = 1', 'layers = 2'),
        stock=_STOCK_MODEL,
    ),
    'own': Network(
        imports='from moe_peft.models import t5',
        sizes='gin/models/tiny_t5.gin',
        adapted='gin/models/t5x_encoder_decoder.gin',
        tiny=_OWN_T5,
        base='examples.scalable_t5',
    ),
    'examples.decoder_only': Network(
        imports='import seqio\nfrom t5x.examples.decoder_only import network',
        sizes='t5x/examples/decoder_only/models/base.gin',
        adapted='gin/models/t5x_examples_decoder_only.gin',
        tiny=_DECODER_ONLY,
    ),
    'llama': Network(
        imports='from moe_peft.models import decoder_config',
        sizes='gin/models/tiny_llama.gin',
        adapted='gin/models/t5x_decoder_only.gin',
        tiny=_LLAMA,
    ),
    'flaxformer': Network(
        imports='import seqio',
        sizes='flaxformer/t5x/configs/t5/models/t5_1_1_small.gin',
        adapted='gin/models/t5x_flaxformer_t5_1_1.gin',
        tiny=_FLAXFORMER,
        package='flaxformer',
    ),
}


def stock(name: str) -> str:
  """Configuration that writes a checkpoint of a network without adapters."""
  network = NETWORKS[name]
  return f"""
from __gin__ import dynamic_registration
import optax
from t5x import models
from t5x import optimizers
from t5x import utils
{network.imports}
include '{network.sizes}'
include 't5x/configs/runs/pretrain.gin'
{network.stock}
{network.tiny}
OPTIMIZER = @optimizers.OptaxWrapper()
optimizers.OptaxWrapper.optax_optimizer = @optax.sgd()
optax.sgd.learning_rate = 0.1
utils.SaveCheckpointConfig.period = 1
TRAIN_STEPS = 1
RANDOM_SEED = 7
"""


def require(name: str) -> None:
  """Skips a test where the packages of a network are absent."""
  pytest.importorskip(NETWORKS[name].package)
  if NETWORKS[name].package == 'flaxformer':
    pytest.importorskip('aqt')  # It imports it: pip install --no-deps aqtp


def adapted(
    method: str,
    name: str = 'examples.t5',
    imports: str = '',
    includes: str = '',
    more: str = '',
    run: str = 't5x_finetune',
    sizes: str = '',
) -> str:
  """Configuration of adapters on a network.

  Args:
    method: Name of a file under gin/methods/.
    name: The network.
    imports: More imports.
    includes: Files after those of the run.
    more: More bindings.
    run: Name of a file under gin/runs/.
    sizes: A file of sizes in the place of the network's own.
  """
  network = NETWORKS[name]
  return f"""
from __gin__ import dynamic_registration
{network.imports}
{imports}
include '{sizes or network.sizes}'
include '{network.adapted}'
include 'gin/methods/{method}.gin'
include 'gin/runs/{run}.gin'
{includes}
{network.tiny}
WARMUP_STEPS = 0
{more}
"""
