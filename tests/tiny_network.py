# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A tiny encoder-decoder for tests of adapters.

It has the layers, paths and call signature of T5, and nothing that mixes
tokens: where one token changes another, an adapter did it.
"""

import dataclasses
from typing import Any

from flax import linen as nn
from flax.linen import partitioning
import jax.numpy as jnp

from moe_peft.models import layers

BATCH, LENGTH = 3, 6


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes and options."""

  num_encoder_layers: int = 2
  num_decoder_layers: int = 2
  dtype: Any = jnp.float32
  scan: bool = False
  remat: bool = False


class Attention(nn.Module):
  """The matrices of an attention, used elementwise."""

  dtype: Any

  @nn.compact
  def __call__(self, x, source):
    make = lambda name: layers.DenseGeneral(
        (2, 4), kernel_axes=('embed', 'joined_kv'), dtype=self.dtype, name=name
    )
    query, key = make('query')(x), make('key')(source)
    x = query * key + make('value')(source)
    return layers.DenseGeneral(
        8,
        axis=(-2, -1),
        kernel_axes=('joined_kv', 'embed'),
        dtype=self.dtype,
        name='out',
    )(x)


class Layer(nn.Module):
  """Attention and MLP, in a form that `nn.scan` accepts."""

  config: Config
  attention: str

  @nn.compact
  def __call__(self, x):
    dtype = self.config.dtype
    y = layers.LayerNorm(dtype, name='attention_norm')(x)
    x = x + Attention(dtype, name=self.attention)(y, y)
    y = layers.LayerNorm(dtype, name='mlp_norm')(x)
    mlp = layers.MlpBlock(12, ('gelu', 'linear'), dtype=dtype, name='mlp')
    return x + mlp(y), None


class Stack(nn.Module):
  """Layers, unrolled or scanned."""

  config: Config
  attention: str
  num_layers: int

  @nn.compact
  def __call__(self, tokens):
    config = self.config
    x = layers.Embed(20, 8, config.dtype, name='embed')(tokens)
    layer = nn.remat(Layer) if config.remat else Layer
    if not config.scan:
      for i in range(self.num_layers):
        x, _ = layer(config, self.attention, name=f'layers_{i}')(x)
      return x
    scanned = partitioning.scan_with_axes(
        layer,
        variable_axes={'params': 1, 'intermediates': 0, 'routing': 0},
        split_rngs={'params': True, 'dropout': True},
        length=self.num_layers,
        axis_name='layers',
    )
    return scanned(config, self.attention, name='layers')(x)[0]


class Network(nn.Module):
  """The encoder-decoder; its decoder does not read the encoder."""

  config: Config = Config()

  def setup(self):
    config = self.config
    self.encoder = Stack(config, 'attention', config.num_encoder_layers)
    self.decoder = Stack(config, 'self_attention', config.num_decoder_layers)

  def encode(self, encoder_input_tokens, encoder_segment_ids=None):
    """Returns [batch, length, 8]."""
    return self.encoder(encoder_input_tokens)

  def decode(
      self,
      encoded,
      encoder_input_tokens,
      decoder_input_tokens,
      decoder_target_tokens,
      encoder_segment_ids=None,
      decoder_segment_ids=None,
  ):
    """Returns [batch, length, 8]."""
    return self.decoder(decoder_input_tokens)

  def __call__(
      self,
      encoder_input_tokens,
      decoder_input_tokens,
      decoder_target_tokens,
      encoder_segment_ids=None,
      decoder_segment_ids=None,
  ):
    """Returns both stacks' outputs side by side, [batch, length, 16]."""
    encoded = self.encode(encoder_input_tokens, encoder_segment_ids)
    decoded = self.decode(
        encoded,
        encoder_input_tokens,
        decoder_input_tokens,
        decoder_target_tokens,
        encoder_segment_ids,
        decoder_segment_ids,
    )
    return jnp.concatenate([encoded, decoded], axis=-1)


def tokens():
  """Returns (encoder_input, decoder_input, decoder_target) tokens.

  Row 0 has two tokens of padding at its end in every sequence.
  """
  ids = 1 + jnp.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % 19
  encoder = ids.at[0, 4:].set(0)
  target = (1 + (ids * 7) % 19).at[0, 4:].set(0)
  return encoder, 1 + (ids * 3) % 19, target
