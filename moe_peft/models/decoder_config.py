# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sizes and options of a decoder, and what differs from layer to layer."""

from collections.abc import Sequence
from typing import Any

from flax import struct
import jax.numpy as jnp
import numpy as np

from moe_peft import errors
from moe_peft.models import attention
from moe_peft.models import rotary
from moe_peft.models import stack

# Longer than any row.
_NO_WINDOW = 2**30


@struct.dataclass
class DecoderConfig:
  """Sizes and options of a decoder; the defaults are those of LLaMA 2.

  Attributes:
    vocab_size: Rows of the embedding, padding rows included.
    dtype: Type of activations and arithmetic; parameters stay as stored.
    emb_dim: Width of the residual stream.
    num_heads: Attention heads.
    num_kv_heads: Heads of keys and values; divides `num_heads`.
    num_layers: Layers.
    head_dim: Size of each head.
    mlp_dim: Hidden size of the MLP.
    mlp_activations: One function per input projection.
    mlp_bias: Whether the layers of the MLP have a bias.
    attention_bias: Which projections of attention have one, letters of 'qkvo'.
    qk_norm: Norm of queries and keys before they are rotated: 'none', 'head'
      (each head by itself) or 'joined' (all heads together).
    query_scale: Multiplies attention logits; None: `head_dim ** -0.5`.
    attention_softcap: Bound of attention logits, by tanh; 0: none.
    layer_pattern: What layers see, repeated over the stack: 'global' (the row),
      'local' (the last `window` tokens) or 'nope' (the row, without positions).
    window: Tokens that a query of a 'local' layer sees, its own included.
    rope_theta: Base of the rotary positions.
    local_rope_theta: Base in 'local' layers, which then have no scaling; None:
      positions are the same there.
    rope_fraction: Share of the features of a head that is rotated, the first.
    rope_scaling: How positions reach longer rows; None: they do not.
    norms: Where a branch is normed: 'pre' (before), 'post' (after) or
      'sandwich' (both).
    norm_epsilon: Added to the mean square in every norm.
    residual_scale: Multiplies each branch before it is added.
    embedding_scale: Multiplies the embedding, not the tied output layer.
    logits_via_embedding: Ties the output layer to the embedding.
    logits_divisor: Divides the logits.
    logits_softcap: Bound of the logits, by tanh; 0: none.
    dropout_rate: Rate of every dropout, broadcast over length. The published
      models have none.
    float32_attention_logits: Attention logits in float32 whatever `dtype`.
    attention: How attention runs, see `dot_product.py`.
    scan_layers: One compiled layer for the stack, with stacked parameters.
    remat_policy: 'none', 'minimal' (keep the results of matrix products
      without batch axes), 'full' (recompute every layer) or 'auto'.
  """

  vocab_size: int
  dtype: Any = jnp.float32
  emb_dim: int = 4096
  num_heads: int = 32
  num_kv_heads: int = 32
  num_layers: int = 32
  head_dim: int = 128
  mlp_dim: int = 11008
  mlp_activations: Sequence[str] = ('silu', 'linear')
  mlp_bias: bool = False
  attention_bias: str = ''
  qk_norm: str = 'none'
  query_scale: float | None = None
  attention_softcap: float = 0.0
  layer_pattern: Sequence[str] = ('global',)
  window: int = 0
  rope_theta: float = 10000.0
  local_rope_theta: float | None = None
  rope_fraction: float = 1.0
  rope_scaling: rotary.Scaling | None = None
  norms: str = 'pre'
  norm_epsilon: float = 1e-5
  residual_scale: float = 1.0
  embedding_scale: float = 1.0
  logits_via_embedding: bool = False
  logits_divisor: float = 1.0
  logits_softcap: float = 0.0
  dropout_rate: float = 0.0
  float32_attention_logits: bool = False
  attention: str = 'auto'
  scan_layers: bool = False
  remat_policy: str = 'none'

  @property
  def rotated(self) -> int:
    """Features of a head that are rotated."""
    return int(self.head_dim * self.rope_fraction)


_CHOICES = {
    'qk_norm': ('none', 'head', 'joined'),
    'norms': ('pre', 'post', 'sandwich'),
}
_LAYERS = ('global', 'local', 'nope')


def check_config(config: DecoderConfig) -> None:
  """Raises a UserError that names the first wrong field of `config`."""
  stack.check_config(
      config,
      (
          'vocab_size emb_dim num_heads num_kv_heads num_layers head_dim '
          'mlp_dim'
      ).split(),
  )

  def wrong(name, what):
    return errors.UserError(what, stack.field(config, name))

  if config.num_heads % config.num_kv_heads:
    raise wrong(
        'num_kv_heads',
        f'It is {config.num_kv_heads}, which does not divide num_heads = '
        f'{config.num_heads}.',
    )
  if config.rotated % 2 or not 0 < config.rope_fraction <= 1:
    name = 'head_dim' if config.rope_fraction == 1 else 'rope_fraction'
    raise wrong(
        name,
        f'It must leave an even number of features to rotate, not '
        f'{config.rotated} of {config.head_dim}: rotary positions turn pairs.',
    )
  for name, values in _CHOICES.items():
    if getattr(config, name) not in values:
      raise wrong(
          name, f'It must be one of {values}, not {getattr(config, name)!r}.'
      )
  if not set(config.attention_bias) <= set('qkvo'):
    raise wrong(
        'attention_bias',
        f"It must be letters of 'qkvo', not {config.attention_bias!r}.",
    )
  if not config.layer_pattern or not set(config.layer_pattern) <= set(_LAYERS):
    raise wrong(
        'layer_pattern',
        f'It must be a tuple of {_LAYERS}, not {config.layer_pattern!r}.',
    )
  if 'local' in config.layer_pattern and config.window < 1:
    raise wrong(
        'window', f"'local' layers see at least one token, not {config.window}."
    )
  if config.rope_scaling is not None:
    rotary.check_scaling(config.rope_scaling, config.rotated)


def layer_positions(config: DecoderConfig) -> attention.LayerPositions:
  """What positions mean to each layer, with a leading axis of layers."""
  size, scaling = config.rotated, config.rope_scaling
  amplitude = scaling.amplitude if scaling else 1.0
  turns = rotary.frequencies(config.rope_theta, size, scaling)
  rows = {
      'global': (turns, amplitude, _NO_WINDOW),
      'local': (turns, amplitude, config.window),
      'nope': (np.zeros_like(turns), 1.0, _NO_WINDOW),
  }
  if config.local_rope_theta is not None:
    turns = rotary.frequencies(config.local_rope_theta, size)
    rows['local'] = (turns, 1.0, config.window)
  pattern = config.layer_pattern
  kinds = [pattern[i % len(pattern)] for i in range(config.num_layers)]
  frequencies, amplitudes, windows = zip(
      *(rows[kind] for kind in kinds), strict=True
  )
  return attention.LayerPositions(
      np.stack(frequencies),
      np.asarray(amplitudes, np.float32),
      np.asarray(windows, np.int32) if 'local' in kinds else None,
  )
