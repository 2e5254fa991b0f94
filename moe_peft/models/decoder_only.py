# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A decoder-only model as the engine sees it: inputs and targets in one row.

Works on the features of `seqio.PrefixLMFeatureConverter`: the inputs stand
before the targets in `decoder_target_tokens`, and `decoder_loss_weights` is 1
at the targets only. Every token sees only what is before it, the inputs too:
`decoder_causal_attention` is left aside, as LLaMA was trained.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from moe_peft.models import decoding
from moe_peft.models import language_model

Array = jax.Array
Batch = language_model.Batch
Params = language_model.Params


@dataclasses.dataclass(frozen=True)
class DecoderOnlyModel(language_model.LanguageModel):
  """A network that is called as T5X's decoder-only ones are.

  Attributes:
    z_loss: As in `LanguageModel`; LLaMA was trained without.
    bos_id: The token that every row begins with. 0 is SeqIO's convention, and
      in SmolLM2's vocabulary the mark between documents.
    target_length: Targets that an example has at most, so that losses and
      scores of rows of one example each need no more logits in a row. None if
      that is not known. Packed rows have all logits.
  """

  features = ('decoder_input_tokens', 'decoder_target_tokens')
  optional_features = ('decoder_segment_ids', 'decoder_positions')

  z_loss: float = 0.0
  bos_id: int = 0
  target_length: int | None = None

  def feature_converter(self, pack: bool = False) -> Any:
    import seqio  # It brings TensorFlow, which a network does not need.

    return seqio.PrefixLMFeatureConverter(pack=pack, bos_id=self.bos_id)

  def init(self, rng: Array, feature_lengths: Mapping[str, int]) -> Params:
    length = feature_lengths['inputs'] + feature_lengths['targets']
    tokens = jnp.ones((1, length), jnp.int32)
    return self.module.init(rng, tokens, tokens, enable_dropout=False)

  def predict(self, params: Params, batch: Batch, **options: Any):
    if self.target_length is None or 'decoder_segment_ids' in batch:
      return super().predict(params, batch, **options)
    # top_k gives the first positions of weight 1 and then, if an example has
    # fewer targets, some of weight 0.
    weights = batch['decoder_loss_weights'].astype(jnp.float32)
    weights, positions = jax.lax.top_k(
        weights, min(self.target_length, weights.shape[-1])
    )
    logits, collections = self.apply(
        params, batch, logit_positions=positions, **options
    )
    targets = jnp.take_along_axis(
        batch['decoder_target_tokens'], positions, axis=-1
    )
    return logits.astype(jnp.float32), targets, weights, collections

  def prompts(self, batch: Batch) -> Array:
    inputs = batch['decoder_loss_weights'] == 0
    return jnp.where(inputs, batch['decoder_target_tokens'], 0)

  def start_decoding(
      self, params: Params, prompts: Array, num_beams: int, length: int
  ) -> tuple[decoding.TokensToLogits, decoding.Cache, Array]:
    prompts = jnp.repeat(prompts, num_beams, axis=0)
    rows, prompt_length = prompts.shape
    # All tokens of a prompt but the last one go into the cache at once.
    lengths = jnp.sum(prompts > 0, axis=-1)
    inputs = jnp.pad(prompts, ((0, 0), (1, 0)), constant_values=self.bos_id)
    start_tokens = jnp.take_along_axis(inputs, lengths[:, None], axis=-1)[:, 0]

    def run(tokens, targets, collections, **options):
      logits, collections = self.module.apply(
          {'params': params, **collections},
          tokens,
          targets,
          enable_dropout=False,
          mutable=['cache'],
          **options,
      )
      return logits, collections

    def step(ids, cache):
      logits, cache = run(ids, ids, cache, decode=True)
      return logits[:, 0].astype(jnp.float32), cache

    ones = jnp.ones((rows, prompt_length + length), jnp.int32)
    _, cache = run(ones, ones, {}, decode=True)
    # The targets say where tokens are: the first one may have the id 0.
    present = jnp.arange(prompt_length) < lengths[:, None]
    _, cache = run(
        inputs[:, :-1],
        present.astype(jnp.int32),
        cache,
        prefill=True,
        prefill_lengths=lengths,
    )
    return step, cache, start_tokens
