# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the engine asks of a model, and what all of them share."""

import abc
from collections.abc import Mapping
import dataclasses
from typing import Any, ClassVar

from clu import metrics as clu_metrics
from flax import linen as nn
import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft.core import inject
from moe_peft.core import tokens as tokens_lib
from moe_peft.models import beam_search
from moe_peft.models import dataset_ids
from moe_peft.models import decoding
from moe_peft.models import sown
from moe_peft.models import token_scores

Array = jax.Array
Batch = Mapping[str, Array]
Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class LanguageModel(abc.ABC):
  """A network with its vocabularies and its loss.

  Works on the features of a SeqIO converter (data/converters.py), all
  `<int32>[batch, length]`; `decoder_input_tokens`, `decoder_target_tokens` and
  `decoder_loss_weights` are always among them.

  Attributes:
    module: The network.
    input_vocabulary: `seqio.Vocabulary` of the inputs.
    output_vocabulary: `seqio.Vocabulary` of the targets.
    z_loss: Factor of `log(Z)^2` of the output softmax (T5X's output z-loss).
    label_smoothing: Probability mass spread over the whole vocabulary.
    loss_factors: Factors of the losses that adapters sow, by name.
    features: Names of the features that the network is called with, in order.
    optional_features: Names of those that it gets as keywords, where examples
      are packed.
  """

  features: ClassVar[tuple[str, ...]]
  optional_features: ClassVar[tuple[str, ...]]

  module: nn.Module
  input_vocabulary: Any
  output_vocabulary: Any
  z_loss: float = 1e-4
  label_smoothing: float = 0.0
  loss_factors: Mapping[str, float] = dataclasses.field(default_factory=dict)

  @property
  @abc.abstractmethod
  def start_id(self) -> int | None:
    """The id, as in data sets, that a decoder reads first; None for none."""

  @abc.abstractmethod
  def init(self, rng: Array, feature_lengths: Mapping[str, int]) -> Params:
    """Returns all variables, `params` and `params_axes`, of a fresh model.

    Args:
      rng: Key of the initial values.
      feature_lengths: Padded lengths, `{'inputs': n, 'targets': m}`.
    """

  def packing(self, batch: Batch) -> dict[str, Array]:
    """The features that say which examples share a row; none if none do."""
    return {k: batch[k] for k in self.optional_features if k in batch}

  def with_ids(
      self, example_ids: Array | None, copies: int = 1
  ) -> dict[str, Array]:
    """What an adapted network is told of examples; nothing where it is bare.

    Args:
      example_ids: `<int32>[batch, n]`, see `tokens.with_example_ids`, or None.
      copies: Rows of the network for each row of the batch, side by side.
    """
    adapted = isinstance(self.module, inject.AdaptedModule)
    if example_ids is None or not adapted:
      return {}
    return {'example_ids': jnp.repeat(example_ids, copies, axis=0)}

  def apply(
      self,
      params: Params,
      batch: Batch,
      dropout_rng: Array | None = None,
      mutable: tuple[str, ...] = (),
      step: Array | None = None,
      **options: Any,
  ) -> tuple[Array, Mapping[str, Any]]:
    """Teacher-forced logits.

    Args:
      params: Nested parameters.
      batch: Model features.
      dropout_rng: Key of the dropout stream; None switches dropout off.
      mutable: Collections to return.
      step: `<int32>[]`, the training step, for routers that follow it.
      **options: Further arguments of the network.

    Returns:
      Logits `<float32>[batch, length, vocab]` and the mutable collections.
    """
    if step is not None:
      options['step'] = step
    return self.module.apply(
        {'params': params},
        *(batch[name] for name in self.features),
        **self.packing(batch),
        **self.with_ids(batch.get(tokens_lib.EXAMPLE_IDS)),
        **options,
        enable_dropout=dropout_rng is not None,
        rngs={} if dropout_rng is None else {'dropout': dropout_rng},
        mutable=list(mutable),
    )

  @abc.abstractmethod
  def prompts(self, batch: Batch) -> Array:
    """Returns the inputs of a batch, `<int32>[batch, length]`, for `generate`.

    Args:
      batch: Model features, not packed.

    Returns:
      Ids as in data sets, zeros at the end.
    """

  @abc.abstractmethod
  def start_decoding(
      self,
      params: Params,
      prompts: Array,
      num_beams: int,
      length: int,
      example_ids: Array | None = None,
  ) -> tuple[decoding.TokensToLogits, decoding.Cache, Array | int]:
    """Reads prompts, each for `num_beams` rows side by side.

    Args:
      params: Nested parameters.
      prompts: As in `generate`.
      num_beams: Rows of each prompt.
      length: Number of tokens to generate at most.
      example_ids: As in `generate`.

    Returns:
      One step of the model (see `decoding`) in ids of data sets, the cache, and
      the tokens that the step reads first, `<int32>[batch * num_beams]` or one
      for all.
    """

  def generate(
      self,
      params: Params,
      prompts: Array,
      max_decode_length: int,
      num_beams: int = 1,
      temperature: float = 0.0,
      rng: Array | None = None,
      watch: decoding.Watch | None = None,
      example_ids: Array | None = None,
  ) -> Array:
    """Generates targets with a key-value cache.

    Args:
      params: Nested parameters.
      prompts: `<int32>[batch, length]`, as the vocabulary encodes texts; zeros
        at the end are padding.
      max_decode_length: Number of tokens to generate at most.
      num_beams: More than one searches; the best sequence is returned.
      temperature: Above zero samples, with `rng`; zero is greedy.
      rng: Key of the samples.
      watch: As in `decoding.sample`; not for beams.
      example_ids: `<int32>[batch, 1]`, 1 + the id of each prompt, for methods
        that are told one; None: none is given.

    Returns:
      `<int32>[batch, max_decode_length]`, as the vocabulary decodes them; zeros
      after the end of sequence.

    Raises:
      errors.UserError: If an option is out of its range.
    """
    if num_beams < 1:
      raise errors.UserError(
          f'The number of beams must be at least 1, not {num_beams}.',
          'num_beams',
      )
    step, cache, start_tokens = self.start_decoding(
        params, prompts, num_beams, max_decode_length, example_ids
    )
    options = {
        'batch_size': prompts.shape[0],
        'max_decode_length': max_decode_length,
        'eos_id': dataset_ids.stop_ids(self.output_vocabulary),
        'start_tokens': start_tokens,
    }
    if num_beams == 1:
      return decoding.sample(
          step, cache, temperature=temperature, rng=rng, watch=watch, **options
      )
    axis = 1 if self.module.scan_layers else 0
    return beam_search.search(
        step, cache, num_beams=num_beams, cache_batch_axis=axis, **options
    ).tokens[:, 0]

  def predict(
      self, params: Params, batch: Batch, **options: Any
  ) -> tuple[token_scores.TokenScores, Array, Mapping[str, Any]]:
    """Scores of the targets.

    Args:
      params: Nested parameters.
      batch: Model features.
      **options: Options of `apply`.

    Returns:
      The scores of n targets, their weights `<float32>[batch, n]`, and the
      mutable collections. n may be less than the length if all other weights
      are 0.
    """
    scores, collections = self._scores(
        params, batch, batch['decoder_target_tokens'], **options
    )
    weights = batch['decoder_loss_weights'].astype(jnp.float32)
    return scores, weights, collections

  def _scores(
      self, params: Params, batch: Batch, targets: Array, **options: Any
  ) -> tuple[token_scores.TokenScores, Mapping[str, Any]]:
    """As `apply`, with scores of targets in the place of logits."""
    if token_scores.are_given_by(self.module):
      return self.apply(params, batch, score_targets=targets, **options)
    logits, collections = self.apply(params, batch, **options)
    return token_scores.of_logits(logits, targets), collections

  def num_tokens(self, batch: Batch) -> Array:
    """Number of real tokens in the rows, inputs and targets, `<int32>[]`."""
    stacks = ('encoder', 'decoder')
    return sum(
        jnp.sum(tokens_lib.in_batch(batch, stack))
        for stack in stacks
        if f'{stack}_input_tokens' in batch
    )

  def without_adapters(self) -> 'LanguageModel':
    """The same model around the bare network."""
    return dataclasses.replace(self, module=self.module.module, loss_factors={})

  def loss(
      self,
      params: Params,
      batch: Batch,
      dropout_rng: Array | None = None,
      normalizer: Array | None = None,
      share: float = 1.0,
      step: Array | None = None,
  ) -> tuple[Array, dict[str, Any]]:
    """Mean loss per target token, and what to log.

    Args:
      params: Nested parameters.
      batch: Model features.
      dropout_rng: Key of the dropout stream; None switches dropout off.
      normalizer: Divides the summed token losses; by default the number of
        target tokens of this batch.
      share: Share of this batch in the step, the weight of what is not a sum
        over tokens: the losses of the adapters.
      step: `<int32>[]`, the training step, for routers that follow it.

    Returns:
      The loss, a scalar, and CLU metrics, which are merged over batches:
      `loss` and `accuracy`, means over target tokens; those of `sown.read`.
    """
    scores, weights, collections = self.predict(
        params,
        batch,
        dropout_rng=dropout_rng,
        mutable=sown.COLLECTIONS,
        step=step,
    )
    token_losses = scores.loss + self.z_loss * jnp.square(scores.log_z)
    if self.label_smoothing:  # Another pass over all logits, each way.
      token_losses += self.label_smoothing * (scores.target - scores.mean)
    sum_weights = weights.sum()
    average = lambda total: clu_metrics.Average(total, sum_weights)
    adapter_loss, adapter_metrics = sown.read(
        collections, batch, self.loss_factors
    )
    metrics = {
        'loss': average(jnp.sum(scores.loss * weights)),
        'accuracy': average(jnp.sum(scores.correct * weights)),
        **adapter_metrics,
    }
    if normalizer is None:
      normalizer = jnp.maximum(sum_weights, 1.0)
    loss = jnp.sum(token_losses * weights) / normalizer
    return loss + share * adapter_loss, metrics

  def log_likelihood(
      self, params: Params, batch: Batch, **options: Any
  ) -> tuple[Array, Mapping[str, Any]]:
    """Log-likelihood of the targets.

    Args:
      params: Nested parameters.
      batch: Model features.
      **options: Options of `apply`.

    Returns:
      `<float32>[batch]`, sums over the targets in nats, and the mutable
      collections.
    """
    scores, weights, collections = self.predict(params, batch, **options)
    return -jnp.sum(scores.loss * weights, axis=-1), collections

  def score(self, params: Params, batch: Batch) -> Array:
    """Log-likelihood of the targets, `<float32>[batch]`, in nats."""
    return self.log_likelihood(params, batch)[0]
