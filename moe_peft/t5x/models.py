# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""T5X models whose loss has the losses of the adapters in it.

They stand in the place of T5X's `EncoderDecoderModel` and `DecoderOnlyModel`.
"""

from collections.abc import Mapping, Sequence
import copy
import dataclasses
import functools
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
from t5x import losses as t5x_losses
from t5x import metrics as t5x_metrics
from t5x import models as t5x_models

from moe_peft import errors
from moe_peft.core import inject
from moe_peft.core import losses
from moe_peft.core import tokens
from moe_peft.data import converters
from moe_peft.models import dataset_ids
from moe_peft.t5x import optimizer

Batch = Mapping[str, jax.Array]
# By their names T5X takes the loss as a mean.
_MEANS = (str, t5x_losses.SpecialLossNormalizingFactor)
_SPECIAL = t5x_losses.SpecialLossNormalizingFactor.__members__
# These are made in training only.
_TRAINING_LOSSES = ('consistency_loss',)


class _AdapterLosses:
  """Adds what adapters sow to the loss and the metrics of a T5X model."""

  def __init__(
      self,
      *args: Any,
      loss_factors: Mapping[str, float] | None = None,
      site_metrics: Sequence[str] = (),
      **kwargs: Any,
  ):
    """As the model of T5X, and:

    Args:
      *args: As of the model of T5X. Losses of adapters are means, so
        `loss_normalizing_factor` should be 'NUM_REAL_TARGET_TOKENS'.
      loss_factors: Factor of each loss that adapters sow.
      site_metrics: Names of sown values that are also logged for every site.
      **kwargs: As of the model of T5X.

    Raises:
      errors.UserError: For a name that no adapter sows, for an optimizer that
        would train the base, for a factor that T5X does not know, and for
        losses of adapters beside a sum over tokens.
    """
    super().__init__(*args, **kwargs)
    optimizer.check_trains_adapters(self.optimizer_def)
    self._loss_factors = dict(loss_factors or {})
    self._site_metrics = tuple(site_metrics)
    for macro, names in (
        ('LOSS_FACTORS', self._loss_factors),
        ('SITE_METRICS', self._site_metrics),
    ):
      for name in names:
        if name not in losses.METRICS and not name.endswith('_loss'):
          raise errors.UserError(
              f'No adapter sows {name!r}.',
              where=macro,
              remedy='Name a loss, as in auxiliary_loss, or one of '
              f'{", ".join(losses.METRICS)}.',
          )
    factor = self._loss_normalizing_factor
    if isinstance(factor, str) and factor.upper() not in _SPECIAL:
      raise errors.UserError(
          f'There is no factor {factor!r}.',
          where='LOSS_NORMALIZING_FACTOR',
          remedy=f'They are {", ".join(_SPECIAL)}.',
      )
    if any(self._loss_factors.values()) and not isinstance(factor, _MEANS):
      raise errors.UserError(
          'Losses of adapters are means, and the loss of the tokens would be a '
          f'sum, divided by {factor}.',
          where='LOSS_NORMALIZING_FACTOR',
          remedy="Leave it at 'NUM_REAL_TARGET_TOKENS', or set the factors in "
          'LOSS_FACTORS to 0.',
      )

  def loss_fn(
      self, params: Any, batch: Batch, dropout_rng: jax.Array | None
  ) -> tuple[jax.Array, Mapping[str, Any]]:
    """Loss and metrics of a batch, as T5X's trainer calls it.

    Args:
      params: Parameters.
      batch: Model features, `<int32>[batch, length]` each.
      dropout_rng: Key of the dropout stream; None when evaluating.

    Returns:
      The loss, a scalar, and T5X metrics: those of T5X, in which
      `cross_ent_loss` is without the losses of the adapters, and
      `adapters/<name>` for everything sown, unweighted.

    Raises:
      errors.UserError: If a loss with a nonzero factor is not sown.
    """
    logits, collections = self._compute_logits(
        params, batch, dropout_rng, mutable=['intermediates']
    )
    normalizer, weights = t5x_losses.get_loss_normalizing_factor_and_weights(
        self._loss_normalizing_factor, batch
    )
    loss, z_loss, _ = t5x_losses.compute_weighted_cross_entropy(
        logits,
        targets=batch['decoder_target_tokens'],
        weights=weights,
        label_smoothing=self._label_smoothing,
        z_loss=self._z_loss,
        loss_normalizing_factor=normalizer,
    )
    metrics = dict(
        self._compute_metrics(
            logits=logits,
            targets=batch['decoder_target_tokens'],
            mask=weights,
            loss=loss,
            z_loss=z_loss,
            segment_ids=_segments(batch),
        )
    )
    sown = collections.get('intermediates', {})
    values = losses.collect(sown)
    total = loss + losses.total(values, self._factors(dropout_rng is not None))
    metrics['loss'] = t5x_metrics.AveragePerStep(total=total)
    for name, value in (values | self._by_site(sown)).items():
      metrics[f'adapters/{name}'] = (
          t5x_metrics.AveragePerStep.from_model_output(value)
      )
    return total, metrics

  def _factors(self, training: bool) -> Mapping[str, float]:
    if training:
      return self._loss_factors
    return {
        name: factor
        for name, factor in self._loss_factors.items()
        if name not in _TRAINING_LOSSES
    }

  def _by_site(self, sown: Mapping[str, Any]) -> dict[str, jax.Array]:
    flat = traverse_util.flatten_dict(dict(sown))
    return {
        '/'.join(path): jnp.mean(jnp.stack(jax.tree.leaves(value)))
        for path, value in flat.items()
        if path[-1] in self._site_metrics
    }


def _segments(batch: Batch) -> dict[str, jax.Array]:
  """Segment ids by stack, or, without packing, where tokens are real."""
  ending = '_segment_ids'
  packed = {
      name.removesuffix(ending): ids
      for name, ids in batch.items()
      if name.endswith(ending)
  }
  if packed:
    return packed
  return {
      name: tokens.real(batch[name])
      for name in ('encoder_input_tokens', 'decoder_target_tokens')
      if name in batch
  }


class AdaptedEncoderDecoderModel(
    _AdapterLosses, t5x_models.EncoderDecoderModel
):
  """An encoder-decoder, with the losses of its adapters."""

  FEATURE_CONVERTER_CLS = converters.EncoderDecoderConverter

  def _compute_logits(
      self, params: Any, batch: Batch, *args: Any, **kwargs: Any
  ) -> Any:
    return t5x_models.EncoderDecoderModel._compute_logits(
        _told(self, batch), params, batch, *args, **kwargs
    )

  def predict_batch_with_aux(
      self, params: Any, batch: Batch, *args: Any, **kwargs: Any
  ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    return t5x_models.EncoderDecoderModel.predict_batch_with_aux(
        _told(self, batch), params, batch, *args, **kwargs
    )


class AdaptedDecoderOnlyModel(_AdapterLosses, t5x_models.DecoderOnlyModel):
  """A decoder-only model, with the losses of its adapters.

  The id 0 may be any token: rows are those of `converters.RowConverter`, and
  T5X generates in the ids of data sets. With `inputs_bidirectional_attention`
  (prefix LM) inputs see later inputs; routers treat the sites as causal all the
  same.
  """

  def __init__(
      self,
      module: Any,
      vocabulary: Any,
      *args: Any,
      bos_id: int | None = 0,
      **kwargs: Any,
  ):
    """As the model of T5X, and:

    Args:
      module: As of the model of T5X.
      vocabulary: As of the model of T5X.
      *args: As of the model of T5X.
      bos_id: The model's id that rows begin with; None for none.
      **kwargs: As of the model of T5X.
    """
    rows = functools.partial(converters.RowConverter, vocabulary, bos_id)
    super().__init__(
        module, vocabulary, *args, feature_converter_cls=rows, **kwargs
    )

  def _compute_logits(
      self, params: Any, batch: Batch, *args: Any, **kwargs: Any
  ) -> Any:
    # Networks read from the targets only where tokens are.
    segment_ids = batch['decoder_segment_ids']
    batch = {**batch, 'decoder_target_tokens': segment_ids}
    if 'decoder_positions' not in batch:  # One example a row.
      del batch['decoder_segment_ids']
    model = _told(
        self, batch, in_prompt=batch.get('decoder_causal_attention')
    )
    return t5x_models.DecoderOnlyModel._compute_logits(
        model, params, batch, *args, **kwargs
    )

  def predict_batch_with_aux(
      self, params: Any, batch: Batch, *args: Any, **kwargs: Any
  ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    # T5X takes 0 for no token, in prompts and in answers.
    vocabulary = self.output_vocabulary
    ids = batch['decoder_input_tokens'] + dataset_ids.offset(vocabulary)
    model = _told(self, batch)
    model.module = dataset_ids.InDatasetIds(
        model.module, vocabulary, one_end=True
    )
    return t5x_models.DecoderOnlyModel.predict_batch_with_aux(
        model, params, {**batch, 'decoder_input_tokens': ids}, *args, **kwargs
    )


@dataclasses.dataclass(frozen=True)
class _Told:
  """A network whose adapters are told what T5X does not pass on.

  Attributes:
    module: The network.
    in_prompt: `<int32>[batch, length]`, which tokens of a decoder are the
      prompt, or None.
    example_ids: `<int32>[batch, n]`, ids of the examples, or None.
  """

  module: Any
  in_prompt: jax.Array | None = None
  example_ids: jax.Array | None = None

  def __getattr__(self, name: str) -> Any:
    return getattr(self.module, name)

  def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
    """As of the network, whose first array has all rows."""
    told = {}
    if self.in_prompt is not None:
      told['in_prompt'] = self.in_prompt
    if self.example_ids is not None:
      # In decoding the samples, or beams, of an example are side by side.
      arrays = (*args, *kwargs.values())
      rows = len(next(x for x in arrays if getattr(x, 'ndim', 0) > 1))
      copies = rows // len(self.example_ids)
      told['example_ids'] = jnp.repeat(self.example_ids, copies, axis=0)
    return self.module.apply(variables, *args, **kwargs, **told)


def _told(model: Any, batch: Batch, **told: Any) -> Any:
  """A copy of a T5X model whose adapters are told of a batch."""
  model = copy.copy(model)
  if isinstance(model.module, inject.AdaptedModule):
    ids = batch.get(tokens.EXAMPLE_IDS)
    model.module = _Told(model.module, example_ids=ids, **told)
  return model
