# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""T5 1.0 and 1.1, mT5, ByT5 and umT5 (arXiv 1910.10683, 2010.11934,
2105.13626, 2304.09151).

Parameter paths and shapes equal those of T5X's `examples.t5`, and with
`scan_layers` those of `examples.scalable_t5`, so public checkpoints restore.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from flax import linen as nn
from flax import struct
import jax.numpy as jnp

from moe_peft import errors
from moe_peft.core import tokens as tokens_lib
from moe_peft.models import attention
from moe_peft.models import layers
from moe_peft.models import stack
from moe_peft.models import t5_stacks


@struct.dataclass
class T5Config:
  """Sizes and options of a T5 model.

  Attributes:
    vocab_size: Rows of the embedding, padding rows included.
    dtype: Type of activations and arithmetic; parameters stay as stored.
    emb_dim: Width of the residual stream.
    num_heads: Attention heads.
    num_encoder_layers: Layers of the encoder.
    num_decoder_layers: Layers of the decoder.
    head_dim: Size of each head.
    mlp_dim: Hidden size of the MLP.
    mlp_activations: One name per input projection: ('relu',) for T5 1.0,
      ('gelu', 'linear') for T5 1.1, mT5 and ByT5.
    dropout_rate: Rate of every dropout, broadcast over length.
    logits_via_embedding: Ties the output layer to the embedding and divides
      the logits by sqrt(emb_dim) (T5 1.0).
    float32_attention_logits: Attention logits in float32 whatever `dtype`.
    attention: How attention runs, see `dot_product.py`.
    scan_layers: One compiled layer for a whole stack, with stacked parameters
      and one relative position bias per layer, as T5X's `scalable_t5`.
    remat_policy: 'none', 'minimal' (keep the results of matrix products
      without batch axes), 'full' (recompute every layer) or 'auto'.
    relative_attention_num_buckets: Buckets of the relative position bias.
    relative_attention_max_distance: Longer distances share a bucket.
    relative_bias_per_layer: One relative position bias per layer (umT5), which
      a scan has in any case.
  """

  vocab_size: int
  dtype: Any = jnp.float32
  emb_dim: int = 512
  num_heads: int = 8
  num_encoder_layers: int = 6
  num_decoder_layers: int = 6
  head_dim: int = 64
  mlp_dim: int = 2048
  mlp_activations: Sequence[str] = ('relu',)
  dropout_rate: float = 0.1
  logits_via_embedding: bool = False
  float32_attention_logits: bool = False
  attention: str = 'auto'
  scan_layers: bool = False
  remat_policy: str = 'none'
  relative_attention_num_buckets: int = 32
  relative_attention_max_distance: int = 128
  relative_bias_per_layer: bool = False

  @property
  def shares_bias(self) -> bool:
    """Whether the layers of a stack share one relative position bias."""
    return not self.scan_layers and not self.relative_bias_per_layer


def check_config(config: T5Config) -> None:
  """Raises a UserError that names the first wrong field of `config`."""
  stack.check_config(
      config,
      (
          'vocab_size emb_dim num_heads num_encoder_layers num_decoder_layers '
          'head_dim mlp_dim relative_attention_num_buckets '
          'relative_attention_max_distance'
      ).split(),
  )
  buckets = config.relative_attention_num_buckets
  if buckets < 4:
    raise errors.UserError(
        f'It must be at least 4, not {buckets}: one for near and one for far '
        'keys on either side.',
        stack.field(config, 'relative_attention_num_buckets'),
    )
  if config.relative_attention_max_distance <= buckets // 2:
    raise errors.UserError(
        f'It must be more than {buckets // 2}, half of '
        'relative_attention_num_buckets, not '
        f'{config.relative_attention_max_distance}.',
        stack.field(config, 'relative_attention_max_distance'),
    )


def _self_mask(valid, segment_ids):
  """Which tokens of a row may see each other, `<bool>[batch, 1, q, k]`."""
  mask = attention.pair_mask(valid, valid)
  if segment_ids is not None:
    mask &= attention.segment_mask(segment_ids, segment_ids)
  return mask


class Transformer(nn.Module):
  """A T5 encoder-decoder, with the call signatures of T5X's networks.

  Attributes:
    config: Sizes and options.
  """

  SCORES_TARGETS: ClassVar[bool] = True

  config: T5Config

  def setup(self):
    cfg = self.config
    check_config(cfg)
    self.token_embedder = layers.Embed(cfg.vocab_size, cfg.emb_dim, cfg.dtype)
    self.encoder = t5_stacks.Encoder(cfg, token_embedder=self.token_embedder)
    self.decoder = t5_stacks.Decoder(cfg, token_embedder=self.token_embedder)

  @property
  def scan_layers(self) -> bool:
    """Whether cache entries have a leading layer axis; T5X reads it."""
    return self.config.scan_layers

  def encode(
      self, encoder_input_tokens, encoder_segment_ids=None, enable_dropout=True
  ):
    """Runs the encoder.

    Args:
      encoder_input_tokens: `<int32>[batch, encoder_length]`, 0 is padding.
      encoder_segment_ids: `<int32>[batch, encoder_length]` of packed examples.
      enable_dropout: Whether to drop; needs the rng stream 'dropout'.

    Returns:
      `[batch, encoder_length, embed]`.
    """
    valid = tokens_lib.real(encoder_input_tokens)
    mask = _self_mask(valid, encoder_segment_ids)
    return self.encoder(encoder_input_tokens, mask, not enable_dropout)

  def decode(
      self,
      encoded,
      encoder_input_tokens,
      decoder_input_tokens,
      decoder_target_tokens,
      encoder_segment_ids=None,
      decoder_segment_ids=None,
      decoder_positions=None,
      enable_dropout=True,
      decode=False,
      max_decode_length=None,
      score_targets=None,
  ):
    """Runs the decoder.

    With `decode=True` and mutable collection 'cache', the first call, on
    inputs of the full length, allocates the cache (its logits mean nothing);
    each further call takes one position.

    Args:
      encoded: `[batch, encoder_length, embed]`, from `encode`.
      encoder_input_tokens: `<int32>[batch, encoder_length]`, for the mask.
      decoder_input_tokens: `<int32>[batch, length]`, the targets moved right.
      decoder_target_tokens: `<int32>[batch, length]`, for the mask; while
        decoding only its shape counts.
      encoder_segment_ids: `<int32>[batch, encoder_length]` of packed examples.
      decoder_segment_ids: `<int32>[batch, length]` of packed examples.
      decoder_positions: Accepted as T5X does and unused: T5's positions are
        relative, and packing shifts both ends alike.
      enable_dropout: Whether to drop; needs the rng stream 'dropout'.
      decode: Whether to use the cache.
      max_decode_length: Length of the cache, needed when it is in use.
      score_targets: `<int32>[batch, length]`, whose scores are wanted.

    Returns:
      Logits, `<float32>[batch, length, vocab]`, or `token_scores.TokenScores`.

    Raises:
      ValueError: For packed inputs while decoding, and for segment ids of one
        side only.
    """
    del decoder_positions
    if (encoder_segment_ids is None) != (decoder_segment_ids is None):
      raise ValueError('packing needs the segment ids of both sides')
    encoder_valid = tokens_lib.real(encoder_input_tokens)
    if decode:
      if encoder_segment_ids is not None:
        raise ValueError('packed examples cannot be decoded step by step')
      mask = None
      decoder_valid = jnp.ones(decoder_target_tokens.shape, bool)
    else:
      decoder_valid = tokens_lib.real(decoder_target_tokens)
      mask = _self_mask(decoder_valid, decoder_segment_ids)
      mask &= attention.causal_mask(decoder_target_tokens.shape[1])
    cross_mask = attention.pair_mask(decoder_valid, encoder_valid)
    if encoder_segment_ids is not None:
      cross_mask &= attention.segment_mask(
          decoder_segment_ids, encoder_segment_ids
      )
    return self.decoder(
        encoded, decoder_input_tokens, mask, cross_mask, not enable_dropout,
        decode, max_decode_length, score_targets,
    )

  def __call__(
      self,
      encoder_input_tokens,
      decoder_input_tokens,
      decoder_target_tokens,
      encoder_segment_ids=None,
      decoder_segment_ids=None,
      encoder_positions=None,
      decoder_positions=None,
      *,
      enable_dropout: bool = True,
      decode: bool = False,
      score_targets=None,
  ):
    """Runs encoder and decoder; arguments and result are theirs."""
    del encoder_positions
    encoded = self.encode(
        encoder_input_tokens, encoder_segment_ids, enable_dropout
    )
    return self.decode(
        encoded,
        encoder_input_tokens,
        decoder_input_tokens,
        decoder_target_tokens,
        encoder_segment_ids,
        decoder_segment_ids,
        decoder_positions,
        enable_dropout,
        decode,
        score_targets=score_targets,
    )
