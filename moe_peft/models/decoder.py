# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""One decoder for LLaMA (arXiv 2302.13971) and the families after it.

RMSNorm, rotary positions, grouped-query attention and a gated MLP; families
differ in the options of `decoder_config.py`, and `hf/families.py` says which
has which. Layers are named as in a T5 decoder
(`decoder/layers_0/self_attention/query`, `decoder/layers_0/mlp/wi_0`; with
`scan_layers` `decoder/decoder/...`), so the rules of the methods find them;
`wi_0` is the gate, `wi_1` the other factor.
"""

from collections.abc import Callable
from typing import ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp

from moe_peft.models import attention
from moe_peft.models import decoder_config
from moe_peft.models import layers
from moe_peft.models import stack


class Layer(nn.Module):
  """Causal self-attention and MLP, each in a residual branch."""

  config: decoder_config.DecoderConfig
  deterministic: bool
  decode: bool

  @nn.compact
  def __call__(
      self, inputs, layer_positions, mask, positions, prefill_lengths
  ):
    """Returns `([batch, length, embed], None)`, the form that scan wants."""
    cfg = self.config
    scale = cfg.head_dim**-0.5 if cfg.query_scale is None else cfg.query_scale
    attend = stack.attend(
        self,
        'self_attention',
        decode=self.decode,
        num_kv_heads=cfg.num_kv_heads,
        logit_scale=scale,
        softcap=cfg.attention_softcap,
        biases=cfg.attention_bias,
        qk_norm=cfg.qk_norm,
        norm_epsilon=cfg.norm_epsilon,
    )
    x = self._add_branch(
        inputs,
        'self_attention',
        lambda y: attend(
            y,
            y,
            mask,
            positions=positions,
            layer_positions=layer_positions,
            prefill_lengths=prefill_lengths,
        ),
    )
    mlp = stack.mlp(self, use_bias=cfg.mlp_bias)
    return self._add_branch(x, 'mlp', mlp), None

  def _add_branch(
      self, x: jax.Array, name: str, branch: Callable[[jax.Array], jax.Array]
  ) -> jax.Array:
    """Returns `x` plus the branch of it, normed and scaled."""
    cfg = self.config
    y = x if cfg.norms == 'post' else _norm(cfg, f'pre_{name}_layer_norm')(x)
    y = branch(y)
    if cfg.norms != 'pre':
      y = _norm(cfg, f'post_{name}_layer_norm')(y)
    return stack.residual(self, x, _scaled(y, cfg.residual_scale))


def _norm(config: decoder_config.DecoderConfig, name: str) -> layers.LayerNorm:
  return stack.norm(config, name, config.norm_epsilon)


def _scaled(x: jax.Array, factor: float) -> jax.Array:
  """The factor is rounded to the type of `x`, as in Gemma's own code."""
  return x if factor == 1.0 else x * jnp.asarray(factor, x.dtype)


class Decoder(nn.Module):
  """The stack and the output layer.

  Attributes:
    config: The model's configuration.
    token_embedder: The embedding.
  """

  config: decoder_config.DecoderConfig
  token_embedder: nn.Module

  @nn.compact
  def __call__(
      self,
      tokens,
      mask,
      positions,
      prefill_lengths,
      logit_positions,
      score_targets,
      deterministic,
      decode,
  ):
    """Maps `<int32>[batch, length]` to `<float32>[batch, length, vocab]`.

    With `logit_positions`, `<int32>[batch, n]`, to `[batch, n, vocab]`; with
    `score_targets`, `<int32>[batch, n]`, to their scores.
    """
    cfg = self.config
    x = _scaled(self.token_embedder(tokens), cfg.embedding_scale)
    x = layers.length_dropout(cfg.dropout_rate, deterministic)(x)
    x = stack.run_stack(
        Layer,
        'decoder',
        cfg.num_layers,
        cfg,
        {'deterministic': deterministic, 'decode': decode},
        x,
        mask,
        positions,
        prefill_lengths,
        layered=(decoder_config.layer_positions(cfg),),
    )
    x = _norm(cfg, 'decoder_norm')(x)
    x = layers.length_dropout(cfg.dropout_rate, deterministic)(x)
    return stack.output(
        cfg, self.token_embedder, x, score_targets, cfg.logits_divisor,
        cfg.logits_softcap, logit_positions,
    )


class Transformer(nn.Module):
  """A decoder, with the call signature that T5X's models use.

  Attributes:
    config: Sizes and options.
  """

  SCORES_TARGETS: ClassVar[bool] = True

  config: decoder_config.DecoderConfig

  def setup(self):
    cfg = self.config
    decoder_config.check_config(cfg)
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
      score_targets=None,
  ):
    """Runs the decoder.

    With `decode=True` and mutable collection 'cache', the first call, on
    inputs of the full length, allocates the cache (its logits mean nothing); a
    call with `prefill=True` fills its beginning with prompts; each further call
    takes one position. Padding comes after the tokens, so it needs no mask.

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
      score_targets: `<int32>[batch, n]`, targets there, to get their scores.

    Returns:
      Logits, `<float32>[batch, length or n, vocab]`, or `TokenScores`.

    Raises:
      ValueError: For packed inputs while decoding.
    """
    del decoder_target_tokens, max_decode_length
    if (decode or prefill) and decoder_segment_ids is not None:
      raise ValueError('packed examples cannot be decoded step by step')
    if self.config.rope_scaling is not None:
      self.config.rope_scaling.check_length(decoder_input_tokens.shape[1])
    mask = None
    if not decode:
      mask = _mask(
          decoder_input_tokens.shape[1], decoder_causal_attention,
          decoder_segment_ids,
      )
    return self.decoder(
        decoder_input_tokens,
        mask,
        decoder_positions,
        prefill_lengths if prefill else None,
        logit_positions,
        score_targets,
        not enable_dropout,
        decode or prefill,
    )


def _mask(
    length: int, prefix: jax.Array | None, segment_ids: jax.Array | None
) -> jax.Array:
  """Which position sees which, <bool>[batch or 1, 1, length, length]."""
  mask = attention.causal_mask(length)
  if prefix is not None:
    mask |= attention.pair_mask(prefix > 0, prefix > 0)
  if segment_ids is not None:
    mask &= attention.segment_mask(segment_ids, segment_ids)
  return mask
