# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The encoder and the decoder of T5 (arXiv 1910.10683), and their layers."""

from typing import Any

from flax import linen as nn

from moe_peft.models import layers
from moe_peft.models import relative_positions
from moe_peft.models import stack


class EncoderLayer(nn.Module):
  """Self-attention and MLP, each in a pre-norm residual branch."""

  config: Any
  deterministic: bool

  @nn.compact
  def __call__(self, inputs, mask, bias):
    """Returns `([batch, length, embed], None)`, the form that scan wants."""
    cfg = self.config
    if bias is None:
      bias = _position_biases(cfg)(inputs.shape[1], True)
    x = inputs
    y = stack.norm(cfg, 'pre_attention_layer_norm')(x)
    y = stack.attend(self, 'attention')(y, y, mask, bias)
    x = stack.residual(self, x, y)
    y = stack.norm(cfg, 'pre_mlp_layer_norm')(x)
    return stack.residual(self, x, stack.mlp(self)(y)), None


class DecoderLayer(nn.Module):
  """Causal self-attention, cross-attention and MLP, each pre-norm residual."""

  config: Any
  deterministic: bool
  decode: bool
  bias_length: int

  @nn.compact
  def __call__(self, inputs, encoded, mask, cross_mask, bias):
    """Returns `([batch, length, embed], None)`, the form that scan wants."""
    cfg = self.config
    if bias is None:
      bias = _position_biases(cfg)(self.bias_length, False)
    x = inputs
    y = stack.norm(cfg, 'pre_self_attention_layer_norm')(x)
    attend = stack.attend(self, 'self_attention', decode=self.decode)
    x = stack.residual(self, x, attend(y, y, mask, bias))
    y = stack.norm(cfg, 'pre_cross_attention_layer_norm')(x)
    y = stack.attend(self, 'encoder_decoder_attention')(y, encoded, cross_mask)
    x = stack.residual(self, x, y)
    y = stack.norm(cfg, 'pre_mlp_layer_norm')(x)
    return stack.residual(self, x, stack.mlp(self)(y)), None


def _position_biases(
    config: Any,
) -> relative_positions.RelativePositionBiases:
  """Builds `relpos_bias` in the current scope (a stack, or a scanned layer)."""
  return relative_positions.RelativePositionBiases(
      num_heads=config.num_heads,
      num_buckets=config.relative_attention_num_buckets,
      max_distance=config.relative_attention_max_distance,
      dtype=config.dtype,
      name='relpos_bias',
  )


class Encoder(nn.Module):
  """The encoder stack.

  Attributes:
    config: A `t5.T5Config`.
    token_embedder: The embedding, shared with the decoder.
  """

  config: Any
  token_embedder: nn.Module

  @nn.compact
  def __call__(self, tokens, mask, deterministic):
    """Maps `<int32>[batch, length]` to `[batch, length, embed]`."""
    cfg = self.config
    bias = None
    if cfg.shares_bias:
      bias = _position_biases(cfg)(tokens.shape[1], True)
    x = self.token_embedder(tokens)
    x = layers.length_dropout(cfg.dropout_rate, deterministic)(x)
    attributes = {'deterministic': deterministic}
    x = stack.run_stack(
        EncoderLayer,
        'encoder',
        cfg.num_encoder_layers,
        cfg,
        attributes,
        x,
        mask,
        bias,
    )
    x = stack.norm(cfg, 'encoder_norm')(x)
    return layers.length_dropout(cfg.dropout_rate, deterministic)(x)


class Decoder(nn.Module):
  """The decoder stack and the output layer.

  Attributes:
    config: A `t5.T5Config`.
    token_embedder: The embedding, shared with the encoder.
  """

  config: Any
  token_embedder: nn.Module

  @nn.compact
  def __call__(
      self,
      encoded,
      tokens,
      mask,
      cross_mask,
      deterministic,
      decode,
      max_decode_length,
      score_targets,
  ):
    """Maps `<int32>[batch, length]` to logits, or scores of targets."""
    cfg = self.config
    bias_length = tokens.shape[1]
    if decode and max_decode_length:
      bias_length = max_decode_length
    bias = None
    if cfg.shares_bias:
      bias = _position_biases(cfg)(bias_length, False)
    y = self.token_embedder(tokens)
    y = layers.length_dropout(cfg.dropout_rate, deterministic)(y)
    attributes = {
        'deterministic': deterministic,
        'decode': decode,
        'bias_length': bias_length,
    }
    y = stack.run_stack(
        DecoderLayer,
        'decoder',
        cfg.num_decoder_layers,
        cfg,
        attributes,
        y,
        encoded,
        mask,
        cross_mask,
        bias,
    )
    y = stack.norm(cfg, 'decoder_norm')(y)
    y = layers.length_dropout(cfg.dropout_rate, deterministic)(y)
    divisor = cfg.emb_dim**0.5 if cfg.logits_via_embedding else 1.0
    return stack.output(cfg, self.token_embedder, y, score_targets, divisor)
