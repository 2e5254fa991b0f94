# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run minimizes: the tokens of targets, or preferences between answers.

An objective says which features of a task it reads, how they become batches,
and what the loss of a batch is. The model and its evaluation do not know of it.
"""

from collections.abc import Iterable, Mapping
import dataclasses
from typing import Any, ClassVar

from clu import metrics as clu_metrics
import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft.core import trainable
from moe_peft.data import converters
from moe_peft.data import preferences as preference_data
from moe_peft.models import language_model
from moe_peft.models import preferences
from moe_peft.models import sown

Array = jax.Array
Batch = Mapping[str, Array]
Model = language_model.LanguageModel
Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class TargetTokens:
  """The mean loss of a target token: supervised fine-tuning.

  Attributes:
    row_shape: Axes between the batch and the length in the features.
    features: Those that a task must have.
  """

  row_shape: ClassVar[tuple[int, ...]] = ()
  features: ClassVar[tuple[str, ...]] = ('targets',)

  def check(self, trained: Iterable[str], base: Iterable[str]) -> None:
    """Checks that the objective fits what trains.

    Args:
      trained: Paths of the parameters that train.
      base: Paths of what INITIAL_CHECKPOINT_PATH holds.

    Raises:
      errors.UserError: If it does not.
    """

  def task_lengths(self, lengths: Mapping[str, int]) -> Mapping[str, int]:
    """Lengths of the task's features, of TASK_FEATURE_LENGTHS."""
    return lengths

  def feature_converter(self, model: Model, packing: bool) -> Any:
    """The `seqio.FeatureConverter` that makes training batches."""
    return converters.of_model(model, packing)

  def normalizer(self, batch: Batch) -> Array:
    """What the summed losses of a batch are divided by, `<float32>[]`."""
    weights = jnp.sum(batch['decoder_loss_weights'], dtype=jnp.float32)
    return jnp.maximum(weights, 1.0)

  def loss(
      self,
      model: Model,
      params: Params,
      batch: Batch,
      dropout_rng: Array,
      normalizer: Array,
      share: float,
      step: Array,
  ) -> tuple[Array, dict[str, Any]]:
    """The loss of a part of a batch, and CLU metrics.

    Args:
      model: The model.
      params: Nested parameters.
      batch: Features of the part.
      dropout_rng: Key of the dropout stream.
      normalizer: The normalizer of the whole batch.
      share: Share of the part in the batch. It weighs the losses of adapters,
        which are means and not sums over tokens.
      step: `<int32>[]`, the training step.
    """
    return model.loss(params, batch, dropout_rng, normalizer, share, step)


@dataclasses.dataclass(frozen=True)
class DirectPreference(TargetTokens):
  """DPO (arXiv 2305.18290): the chosen answer likelier than the rejected one.

  The reference is the same model with its adapters switched off, so there is no
  second model in memory, only one more forward pass without a gradient. Both
  passes are without dropout, noise and limits of capacity: what is random, and
  what couples two answers, would be most of their difference. The losses of
  routers are those of the policy's pass.

  Attributes:
    beta: How strongly the policy is held to the reference; 0.1 as in the
      paper's experiments and in TRL.
    label_smoothing: Probability that a label is wrong (conservative DPO), below
      0.5; 0 is the paper's loss.
  """

  row_shape: ClassVar[tuple[int, ...]] = (2,)
  features: ClassVar[tuple[str, ...]] = ('prompt', *preference_data.ANSWERS)

  beta: float = 0.1
  label_smoothing: float = 0.0

  def __post_init__(self):
    if not 0 <= self.label_smoothing < 0.5:
      raise errors.UserError(
          f'{self.label_smoothing} must be at least 0 and below 0.5, where a '
          'label says nothing.',
          where='LABEL_SMOOTHING',
      )

  def check(self, trained, base):
    changed = [path for path in trained if not trainable.is_adapter(path)]
    if changed:
      raise errors.UserError(
          'The reference of DPO is the model without its adapters, and '
          f'{changed[0]} of the base would train.',
          where='TRAINABLE_REGEX',
          remedy='Train adapters alone, as the files of gin/methods/ do but '
          'for full.gin.',
      )
    if any(map(trainable.is_adapter, base)):
      raise errors.UserError(
          'The base holds adapters that were trained. Without them it is '
          'another model, which would be the reference of DPO.',
          where='INITIAL_CHECKPOINT_PATH',
          remedy='Start from a plain base. One LoRA is merged into its base by '
          '`python -m moe_peft hf export RUN --format merged`, which can be '
          'imported again.',
      )

  def task_lengths(self, lengths):
    return preference_data.task_lengths(lengths)

  def feature_converter(self, model, packing):
    if packing:
      raise errors.UserError(
          'Pairs of answers are not packed.',
          where='PACKING',
          remedy='Set PACKING = False.',
      )
    return preference_data.PairConverter(converters.of_model(model))

  def normalizer(self, batch):
    return jnp.float32(len(batch['decoder_loss_weights']))

  def loss(self, model, params, batch, dropout_rng, normalizer, share, step):
    del dropout_rng
    rows = {k: x.reshape(-1, x.shape[-1]) for k, x in batch.items()}
    policy, collections = model.log_likelihood(
        params, rows, mutable=sown.COLLECTIONS, step=step
    )
    reference, _ = model.log_likelihood(params, rows, adapters=False)
    pairs = lambda x: x.reshape(-1, 2).T
    chosen, rejected = pairs(preferences.rewards(policy, reference, self.beta))
    margin = chosen - rejected
    losses = preferences.loss_of_margin(margin, self.label_smoothing)
    adapter_loss, metrics = sown.read(collections, rows, model.loss_factors)
    logps = pairs(policy)
    for name, values in {
        'loss': losses,
        'rewards/chosen': chosen,
        'rewards/rejected': rejected,
        'rewards/margins': margin,
        'rewards/accuracies': margin > 0,
        'logps/chosen': logps[0],
        'logps/rejected': logps[1],
    }.items():
      metrics[name] = clu_metrics.Average(
          jnp.sum(values, dtype=jnp.float32), jnp.float32(len(values))
      )
    return losses.sum() / normalizer + share * adapter_loss, metrics
