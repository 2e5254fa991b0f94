# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""An encoder-decoder as the engine sees it: loss, scores, generated tokens.

Works on the features of `seqio.EncDecFeatureConverter`, all `<int32>[batch,
length]`: `encoder_input_tokens`, `decoder_input_tokens`,
`decoder_target_tokens`, `decoder_loss_weights`, and, when examples are packed,
segment ids and positions. As in T5's vocabularies, the id 0 is padding; it also
starts the decoder.
"""

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp

from moe_peft.models import decoding
from moe_peft.models import language_model

Array = jax.Array
Batch = language_model.Batch
Params = language_model.Params


@dataclasses.dataclass(frozen=True)
class EncoderDecoderModel(language_model.LanguageModel):
  """A network that is called as T5X's encoder-decoders are."""

  features = (
      'encoder_input_tokens', 'decoder_input_tokens', 'decoder_target_tokens'
  )
  optional_features = (
      'encoder_segment_ids',
      'decoder_segment_ids',
      'encoder_positions',
      'decoder_positions',
  )

  @property
  def start_id(self) -> int:
    return 0

  def init(self, rng: Array, feature_lengths: Mapping[str, int]) -> Params:
    inputs = jnp.ones((1, feature_lengths['inputs']), jnp.int32)
    targets = jnp.ones((1, feature_lengths['targets']), jnp.int32)
    return self.module.init(
        rng, inputs, targets, targets, enable_dropout=False
    )

  def prompts(self, batch: Batch) -> Array:
    return batch['encoder_input_tokens']

  def start_decoding(
      self,
      params: Params,
      prompts: Array,
      num_beams: int,
      length: int,
      example_ids: Array | None = None,
  ) -> tuple[decoding.TokensToLogits, decoding.Cache, int]:
    repeated = jnp.repeat(prompts, num_beams, axis=0)
    told = self.with_ids(example_ids, num_beams)
    encoded = self.module.apply(
        {'params': params}, prompts, enable_dropout=False, method='encode',
        **self.with_ids(example_ids),
    )
    encoded = jnp.repeat(encoded, num_beams, axis=0)

    def step(ids, cache):
      logits, cache = self.module.apply(
          {'params': params, **cache},
          encoded,
          repeated,
          ids,
          ids,
          enable_dropout=False,
          decode=True,
          max_decode_length=length,
          mutable=['cache'],
          method='decode',
          **told,
      )
      return logits[:, 0].astype(jnp.float32), cache

    # T5X's protocol: one call of full length allocates the cache.
    ones = jnp.ones((repeated.shape[0], length), jnp.int32)
    _, cache = self.module.apply(
        {'params': params},
        jnp.ones_like(repeated),
        ones,
        ones,
        decode=True,
        enable_dropout=False,
        mutable=['cache'],
        **told,
    )
    return step, cache, self.start_id
