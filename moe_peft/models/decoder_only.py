# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A decoder-only model as the engine sees it: inputs and targets in one row.

Works on the features of `converters.RowConverter`: the inputs stand before the
targets in `decoder_target_tokens`, `decoder_loss_weights` is 1 at the targets
only, and `decoder_segment_ids` is 0 for padding, whatever its ids. Every token
sees only what is before it, the inputs too: `decoder_causal_attention` says
where they are, and is no mask here, as LLaMA was trained.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from moe_peft.core import inject
from moe_peft.models import dataset_ids
from moe_peft.models import decoding
from moe_peft.models import language_model
from moe_peft.models import token_scores

Array = jax.Array
Batch = language_model.Batch
Params = language_model.Params


@dataclasses.dataclass(frozen=True)
class DecoderOnlyModel(language_model.LanguageModel):
  """A network that is called as T5X's decoder-only ones are.

  Attributes:
    z_loss: As in `LanguageModel`; LLaMA was trained without.
    bos_id: The model's id of the token that every row begins with. None for
      none, as Qwen was trained: the first prediction is made from the first
      token of the row. 0 is SeqIO's convention.
    target_length: Targets that an example has at most, so that losses and
      scores of rows of one example each need no more logits in a row. None if
      that is not known. Packed rows have all logits.
  """

  # Networks read from their second argument only where tokens are.
  features = ('decoder_input_tokens', 'decoder_segment_ids')
  optional_features = ('decoder_segment_ids', 'decoder_positions')

  z_loss: float = 0.0
  bos_id: int | None = 0
  target_length: int | None = None

  @property
  def start_id(self) -> int | None:
    if self.bos_id is None:
      return None
    return self.bos_id + dataset_ids.offset(self.input_vocabulary)

  def init(self, rng: Array, feature_lengths: Mapping[str, int]) -> Params:
    length = feature_lengths['inputs'] + feature_lengths['targets']
    tokens = jnp.ones((1, length), jnp.int32)
    return self.module.init(rng, tokens, tokens, enable_dropout=False)

  def packing(self, batch: Batch) -> dict[str, Array]:
    # Rows of one example have segment ids too: 1, and 0 for padding.
    return super().packing(batch) if 'decoder_positions' in batch else {}

  def apply(self, params: Params, batch: Batch, *args: Any, **options: Any):
    # Routers may ask which tokens are the prompt; bare networks do not.
    if isinstance(self.module, inject.AdaptedModule):
      options['in_prompt'] = batch.get('decoder_causal_attention')
    return super().apply(params, batch, *args, **options)

  def predict(self, params: Params, batch: Batch, **options: Any):
    if (
        self.target_length is None
        or self.packing(batch)
        or token_scores.logits_are_read(self.module)
    ):
      return super().predict(params, batch, **options)
    # top_k gives the first positions of weight 1 and then, if an example has
    # fewer targets, some of weight 0.
    weights = batch['decoder_loss_weights'].astype(jnp.float32)
    weights, positions = jax.lax.top_k(
        weights, min(self.target_length, weights.shape[-1])
    )
    targets = jnp.take_along_axis(
        batch['decoder_target_tokens'], positions, axis=-1
    )
    scores, collections = self._scores(
        params, batch, targets, logit_positions=positions, **options
    )
    return scores, weights, collections

  def prompts(self, batch: Batch) -> Array:
    is_input = batch['decoder_causal_attention'] > 0
    if self.bos_id is None:
      ids = batch['decoder_input_tokens']
    else:  # Without the token that begins the row.
      ids, is_input = batch['decoder_target_tokens'], is_input[:, 1:]
      is_input = jnp.pad(is_input, ((0, 0), (0, 1)))
    return jnp.where(
        is_input, ids + dataset_ids.offset(self.input_vocabulary), 0
    )

  def start_decoding(
      self,
      params: Params,
      prompts: Array,
      num_beams: int,
      length: int,
      example_ids: Array | None = None,
  ) -> tuple[decoding.TokensToLogits, decoding.Cache, Array]:
    prompts = jnp.repeat(prompts, num_beams, axis=0)
    inputs, lengths = self._begin(prompts)
    start_tokens = jnp.take_along_axis(inputs, lengths[:, None], axis=-1)[:, 0]
    told = self.with_ids(example_ids, num_beams)
    network = dataset_ids.InDatasetIds(self.module, self.input_vocabulary)

    def run(ids, present, collections, **options):
      return network.apply(
          {'params': params, **collections},
          ids,
          present,
          enable_dropout=False,
          mutable=['cache'],
          **told,
          **options,
      )

    def step(ids, cache):
      logits, cache = run(ids, jnp.ones_like(ids), cache, decode=True)
      return logits[:, 0].astype(jnp.float32), cache

    rows, prompt_length = prompts.shape
    ones = jnp.ones((rows, prompt_length + length), jnp.int32)
    _, cache = run(ones, ones, {}, decode=True)
    # All tokens of a prompt but the last one go into the cache at once.
    present = jnp.arange(inputs.shape[1]) < lengths[:, None]
    _, cache = run(
        inputs,
        present.astype(jnp.int32),
        cache,
        prefill=True,
        prefill_lengths=lengths,
    )
    return step, cache, start_tokens

  def _begin(self, prompts: Array) -> tuple[Array, Array]:
    """The rows of prompts, and where in them the last tokens stand."""
    count = jnp.sum(prompts > 0, axis=-1)  # In data sets, 0 is no token.
    if self.bos_id is None:
      return prompts, jnp.maximum(count - 1, 0)
    # A prompt may have the beginning already, as chat templates write it.
    begun = prompts[:, 0] == self.start_id
    first = jnp.full((len(prompts), 1), self.start_id, prompts.dtype)
    rows = jnp.concatenate([first, prompts], axis=1)
    rows = jnp.where(begun[:, None], jnp.roll(rows, -1, axis=1), rows)
    return rows, jnp.where(begun & (count > 0), count - 1, count)
