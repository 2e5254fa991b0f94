# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The layers of T5 (arXiv 1910.10683) and how a stack of them runs.

Unrolled, as `layers_0`, `layers_1` and so on, or as one scan over stacked
parameters, with or without remat. `config` is a `t5.T5Config` everywhere.
"""

from typing import Any

from flax import linen as nn
from flax.linen import partitioning as nn_partitioning
import jax

from moe_peft.models import attention
from moe_peft.models import layers

# What each policy keeps from the forward pass; None recomputes everything.
REMAT_POLICIES = {
    'none': None,
    'minimal': jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    'full': None,
}

# Where the layer axis stands in the parameters of a scanned stack.
PARAM_SCAN_AXIS = 1


class EncoderLayer(nn.Module):
  """Self-attention and MLP, each in a pre-norm residual branch."""

  config: Any
  deterministic: bool

  @nn.compact
  def __call__(self, inputs, mask, bias):
    """Returns `([batch, length, embed], None)`, the form that scan wants."""
    cfg = self.config
    if bias is None:
      bias = position_biases(cfg)(inputs.shape[1], True)
    x = inputs
    y = norm(cfg, 'pre_attention_layer_norm')(x)
    y = attend(self, 'attention')(y, y, mask, bias)
    x = residual(self, x, y)
    y = norm(cfg, 'pre_mlp_layer_norm')(x)
    return residual(self, x, mlp(self)(y)), None


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
      bias = position_biases(cfg)(self.bias_length, False)
    x = inputs
    y = norm(cfg, 'pre_self_attention_layer_norm')(x)
    y = attend(self, 'self_attention', decode=self.decode)(y, y, mask, bias)
    x = residual(self, x, y)
    y = norm(cfg, 'pre_cross_attention_layer_norm')(x)
    y = attend(self, 'encoder_decoder_attention')(y, encoded, cross_mask)
    x = residual(self, x, y)
    y = norm(cfg, 'pre_mlp_layer_norm')(x)
    return residual(self, x, mlp(self)(y)), None


def norm(config: Any, name: str) -> layers.LayerNorm:
  """Builds a norm in the current scope."""
  return layers.LayerNorm(dtype=config.dtype, name=name)


def position_biases(config: Any) -> layers.RelativePositionBiases:
  """Builds `relpos_bias` in the current scope (a stack, or a scanned layer)."""
  return layers.RelativePositionBiases(
      num_heads=config.num_heads,
      num_buckets=config.relative_attention_num_buckets,
      max_distance=config.relative_attention_max_distance,
      dtype=config.dtype,
      name='relpos_bias',
  )


def attend(
    layer: EncoderLayer | DecoderLayer, name: str, decode: bool = False
) -> attention.MultiHeadDotProductAttention:
  """Builds an attention block in the scope of `layer`."""
  cfg = layer.config
  return attention.MultiHeadDotProductAttention(
      num_heads=cfg.num_heads,
      head_dim=cfg.head_dim,
      joined_kernels=not cfg.scan_layers,
      dropout_rate=cfg.dropout_rate,
      float32_logits=cfg.float32_attention_logits,
      dtype=cfg.dtype,
      deterministic=layer.deterministic,
      decode=decode,
      name=name,
  )


def mlp(layer: EncoderLayer | DecoderLayer) -> layers.MlpBlock:
  """Builds the MLP in the scope of `layer`."""
  cfg = layer.config
  return layers.MlpBlock(
      mlp_dim=cfg.mlp_dim,
      activations=tuple(cfg.mlp_activations),
      dropout_rate=cfg.dropout_rate,
      dtype=cfg.dtype,
      deterministic=layer.deterministic,
      name='mlp',
  )


def residual(layer: EncoderLayer | DecoderLayer, x, y):
  """Returns `x + dropout(y)`, `[batch, length, embed]`."""
  rate = layer.config.dropout_rate
  x = x + layers.length_dropout(rate, layer.deterministic)(y)
  names = ('batch', 'length', 'embed')
  return nn_partitioning.with_sharding_constraint(x, names)


def run_stack(layer_class, name, num_layers, config, attributes, x, *shared):
  """Runs `num_layers` layers, unrolled or as one scan, in the current scope.

  The scan has the stack's name, so paths are `encoder/encoder/...`. What
  adapters sow ('intermediates', 'routing') is stacked on a new first axis.

  Args:
    layer_class: `EncoderLayer` or `DecoderLayer`.
    name: Name of the scan, 'encoder' or 'decoder'.
    num_layers: Number of layers.
    config: The model's configuration.
    attributes: Further attributes of the layers.
    x: `[batch, length, embed]`.
    *shared: Arrays that every layer gets.

  Returns:
    `[batch, length, embed]`.
  """
  if config.remat_policy != 'none':
    layer_class = nn_partitioning.remat(
        layer_class,
        prevent_cse=not config.scan_layers,
        policy=REMAT_POLICIES[config.remat_policy],
    )
  if not config.scan_layers:
    for index in range(num_layers):
      layer = layer_class(config, name=f'layers_{index}', **attributes)
      x, _ = layer(x, *shared)
    return x
  scanned = nn_partitioning.scan_with_axes(
      layer_class,
      variable_axes={
          'params': PARAM_SCAN_AXIS,
          'cache': 0,
          'intermediates': 0,
          'routing': 0,
      },
      split_rngs={'params': True, 'dropout': True},
      in_axes=(nn.broadcast,) * len(shared),
      length=num_layers,
      axis_name='layers',
  )
  x, _ = scanned(config, name=name, **attributes)(x, *shared)
  return x
