# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""LLaMA and its relatives (arXiv 2302.13971, 2307.09288): decoders only.

RMSNorm, rotary positions, grouped-query attention, a gated MLP with SiLU.
Layers are named as in a T5 decoder (`decoder/layers_0/self_attention/query`,
`decoder/layers_0/mlp/wi_0`; with `scan_layers` `decoder/decoder/...`), so the
rules of the methods find them; `wi_0` is the gate, `wi_1` the other factor.
"""

from collections.abc import Sequence
from typing import Any

from flax import linen as nn
from flax import struct
import jax.numpy as jnp

from moe_peft import errors
from moe_peft.models import attention
from moe_peft.models import layers
from moe_peft.models import stack


@struct.dataclass
class LlamaConfig:
  """Sizes and options of a LLaMA model.

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
    rope_theta: Base of the rotary positions.
    norm_epsilon: Added to the mean square in every norm.
    dropout_rate: Rate of every dropout, broadcast over length. The published
      models have none.
    logits_via_embedding: Ties the output layer to the embedding.
    float32_attention_logits: Attention logits in float32 whatever `dtype`.
    scan_layers: One compiled layer for the stack, with stacked parameters.
    remat_policy: 'none', 'minimal' (keep the results of matrix products
      without batch axes) or 'full' (recompute every layer).
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
  rope_theta: float = 10000.0
  norm_epsilon: float = 1e-5
  dropout_rate: float = 0.0
  logits_via_embedding: bool = False
  float32_attention_logits: bool = False
  scan_layers: bool = False
  remat_policy: str = 'none'


def check_config(config: LlamaConfig) -> None:
  """Raises a UserError that names the first wrong field of `config`."""
  stack.check_config(
      config,
      (
          'vocab_size emb_dim num_heads num_kv_heads num_layers head_dim '
          'mlp_dim'
      ).split(),
  )
  if config.num_heads % config.num_kv_heads:
    raise errors.UserError(
        f'It is {config.num_kv_heads}, which does not divide num_heads = '
        f'{config.num_heads}.', stack.field(config, 'num_kv_heads'),
    )
  if config.head_dim % 2:
    raise errors.UserError(
        f'It must be even, not {config.head_dim}: rotary positions turn pairs '
        'of features.', stack.field(config, 'head_dim'),
    )


class LlamaLayer(nn.Module):
  """Causal self-attention and MLP, each in a pre-norm residual branch."""

  config: LlamaConfig
  deterministic: bool
  decode: bool

  @nn.compact
  def __call__(self, inputs, mask, positions, prefill_lengths):
    """Returns `([batch, length, embed], None)`, the form that scan wants."""
    cfg = self.config
    attend = stack.attend(
        self,
        'self_attention',
        decode=self.decode,
        num_kv_heads=cfg.num_kv_heads,
        scale_logits=True,
        rope_theta=cfg.rope_theta,
    )
    y = _norm(cfg, 'pre_self_attention_layer_norm')(inputs)
    y = attend(
        y, y, mask, positions=positions, prefill_lengths=prefill_lengths
    )
    x = stack.residual(self, inputs, y)
    y = _norm(cfg, 'pre_mlp_layer_norm')(x)
    return stack.residual(self, x, stack.mlp(self)(y)), None


def _norm(config: LlamaConfig, name: str) -> layers.LayerNorm:
  return stack.norm(config, name, config.norm_epsilon)


class Decoder(nn.Module):
  """The stack and the output layer.

  Attributes:
    config: The model's configuration.
    token_embedder: The embedding.
  """

  config: LlamaConfig
  token_embedder: nn.Module

  @nn.compact
  def __call__(
      self,
      tokens,
      mask,
      positions,
      prefill_lengths,
      logit_positions,
      deterministic,
      decode,
  ):
    """Maps `<int32>[batch, length]` to `<float32>[batch, length, vocab]`.

    With `logit_positions`, `<int32>[batch, n]`, to `[batch, n, vocab]`.
    """
    cfg = self.config
    x = self.token_embedder(tokens)
    x = layers.length_dropout(cfg.dropout_rate, deterministic)(x)
    x = stack.run_stack(
        LlamaLayer,
        'decoder',
        cfg.num_layers,
        cfg,
        {'deterministic': deterministic, 'decode': decode},
        x,
        mask,
        positions,
        prefill_lengths,
    )
    x = _norm(cfg, 'decoder_norm')(x)
    x = layers.length_dropout(cfg.dropout_rate, deterministic)(x)
    if logit_positions is not None:
      x = jnp.take_along_axis(x, logit_positions[..., None], axis=1)
    return stack.output_logits(cfg, self.token_embedder, x)


class Transformer(nn.Module):
  """A LLaMA decoder, with the call signature that T5X's models use.

  Attributes:
    config: Sizes and options.
  """

  config: LlamaConfig

  def setup(self):
    cfg = self.config
    check_config(cfg)
    self.token_embedder = layers.Embed(
        cfg.vocab_size, cfg.emb_dim, cfg.dtype, stddev=0.02
    )
    self.decoder = Decoder(cfg, token_embedder=self.token_embedder)

  @property
  def scan_layers(self) -> bool:
    """Whether cache entries have a leading layer axis; T5X reads it."""
    return self.config.scan_layers

  def __call__(
      self,
      decoder_input_tokens,
      decoder_target_tokens,
      decoder_segment_ids=None,
      decoder_positions=None,
      decoder_causal_attention=None,
      *,
      enable_dropout: bool = True,
      decode: bool = False,
      max_decode_length: int | None = None,
      prefill: bool = False,
      prefill_lengths=None,
      logit_positions=None,
  ):
    """Runs the decoder.

    With `decode=True` and mutable collection 'cache', the first call, on
    inputs of the full length, allocates the cache (its logits mean nothing); a
    call with `prefill=True` fills its beginning with prompts; each further call
    takes one position.

    Padding needs no mask: it comes after the tokens, which do not see it.

    Args:
      decoder_input_tokens: `<int32>[batch, length]`, the targets moved right.
      decoder_target_tokens: `<int32>[batch, length]`. Not read here; adapters
        read from it where padding is.
      decoder_segment_ids: `<int32>[batch, length]` of packed examples.
      decoder_positions: `<int32>[batch, length]` of packed examples.
      decoder_causal_attention: `<int32>[batch, length]`, 1 for tokens that
        every token sees (a prefix LM, arXiv 1910.10683, 3.2.1), or None.
      enable_dropout: Whether to drop; needs the rng stream 'dropout'.
      decode: Whether to use the cache.
      max_decode_length: Accepted as T5X does and unused: the cache has it.
      prefill: Whether to fill the cache with `prefill_lengths` tokens of each
        row of inputs.
      prefill_lengths: `<int32>[batch]`.
      logit_positions: `<int32>[batch, n]`, where logits are wanted; None for
        every position. A large vocabulary costs as much as many layers.

    Returns:
      Logits, `<float32>[batch, length, vocab]`, or `[batch, n, vocab]`.

    Raises:
      ValueError: For packed inputs while decoding.
    """
    del decoder_target_tokens, max_decode_length
    if (decode or prefill) and decoder_segment_ids is not None:
      raise ValueError('packed examples cannot be decoded step by step')
    mask = None
    if not decode:
      mask = attention.causal_mask(decoder_input_tokens.shape[1])
      if decoder_causal_attention is not None:
        prefix = decoder_causal_attention > 0
        mask |= attention.pair_mask(prefix, prefix)
      if decoder_segment_ids is not None:
        mask &= attention.segment_mask(decoder_segment_ids, decoder_segment_ids)
    return self.decoder(
        decoder_input_tokens,
        mask,
        decoder_positions,
        prefill_lengths if prefill else None,
        logit_positions,
        not enable_dropout,
        decode or prefill,
    )
