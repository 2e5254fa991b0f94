# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""T5X models whose loss has the losses of the adapters in it.

Used in place of T5X's `EncoderDecoderModel` and `DecoderOnlyModel`. They know
all of `moe_peft.core.losses.NAMES`, and need none of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
from t5x import decoding
from t5x import losses as t5x_losses
from t5x import metrics as t5x_metrics
from t5x import models as t5x_models

from moe_peft import errors
from moe_peft.core import losses

Batch = Mapping[str, jax.Array]
# Made in training only.
_TRAINING_LOSSES = ('consistency_loss',)


class _AdapterLosses:
  """Adds what adapters sow to the loss and the metrics of a T5X model."""

  def set_adapter_losses(
      self,
      loss_factors: Mapping[str, float] | None,
      site_metrics: Sequence[str],
  ) -> None:
    """Sets the factors of the losses and the metrics kept apart by site.

    Raises:
      errors.UserError: For a name that no adapter sows.
    """
    self._loss_factors = dict(loss_factors or {})
    self._site_metrics = tuple(site_metrics)
    for name in (*self._loss_factors, *self._site_metrics):
      if name not in losses.NAMES:
        raise errors.UserError(
            f'LOSS_FACTORS or SITE_METRICS names {name!r}, which no adapter '
            f'sows; there are {", ".join(losses.NAMES)}.'
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
  tokens = ('encoder_input_tokens', 'decoder_target_tokens')
  return packed or {k: batch[k] != 0 for k in tokens if k in batch}


class AdaptedEncoderDecoderModel(
    _AdapterLosses, t5x_models.EncoderDecoderModel
):
  """An encoder-decoder, with the losses of its adapters."""

  def __init__(
      self,
      module: Any,
      input_vocabulary: Any,
      output_vocabulary: Any,
      optimizer_def: Any,
      decode_fn: Any = decoding.beam_search,
      feature_converter_cls: Any = None,
      label_smoothing: float = 0.0,
      z_loss: float = 0.0,
      loss_normalizing_factor: Any = None,
      default_decoder_params: Any = None,
      loss_factors: Mapping[str, float] | None = None,
      site_metrics: Sequence[str] = (),
  ):
    """As `t5x.models.EncoderDecoderModel`, and:

    Args:
      module: The network.
      input_vocabulary: Vocabulary of the inputs.
      output_vocabulary: Vocabulary of the targets.
      optimizer_def: T5X optimizer.
      decode_fn: Decoding function.
      feature_converter_cls: Class of the feature converter.
      label_smoothing: Probability mass spread over the vocabulary.
      z_loss: Factor of the output z-loss.
      loss_normalizing_factor: What the summed token losses are divided by.
        The losses of adapters are means, so take 'NUM_REAL_TARGET_TOKENS'.
      default_decoder_params: Options of decoding.
      loss_factors: Factor of each loss that adapters sow.
      site_metrics: Names of sown values that are also logged for every site.

    Raises:
      errors.UserError: For a name that no adapter sows.
    """
    self.set_adapter_losses(loss_factors, site_metrics)
    super().__init__(
        module=module,
        input_vocabulary=input_vocabulary,
        output_vocabulary=output_vocabulary,
        optimizer_def=optimizer_def,
        decode_fn=decode_fn,
        feature_converter_cls=feature_converter_cls,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        loss_normalizing_factor=loss_normalizing_factor,
        default_decoder_params=default_decoder_params,
    )


class AdaptedDecoderOnlyModel(_AdapterLosses, t5x_models.DecoderOnlyModel):
  """A decoder-only model, with the losses of its adapters."""

  def __init__(
      self,
      module: Any,
      vocabulary: Any,
      optimizer_def: Any,
      decode_fn: Any = decoding.temperature_sample,
      inputs_bidirectional_attention: bool = False,
      feature_converter_cls: Any = None,
      label_smoothing: float = 0.0,
      z_loss: float = 0.0,
      loss_normalizing_factor: Any = None,
      loss_factors: Mapping[str, float] | None = None,
      site_metrics: Sequence[str] = (),
  ):
    """As `t5x.models.DecoderOnlyModel`, and:

    Args:
      module: The network.
      vocabulary: Vocabulary of inputs and targets.
      optimizer_def: T5X optimizer.
      decode_fn: Decoding function.
      inputs_bidirectional_attention: Whether inputs see later inputs (prefix
        LM); routers treat the sites as causal all the same.
      feature_converter_cls: Class of the feature converter.
      label_smoothing: Probability mass spread over the vocabulary.
      z_loss: Factor of the output z-loss.
      loss_normalizing_factor: What the summed token losses are divided by.
        The losses of adapters are means, so take 'NUM_REAL_TARGET_TOKENS'.
      loss_factors: Factor of each loss that adapters sow.
      site_metrics: Names of sown values that are also logged for every site.

    Raises:
      errors.UserError: For a name that no adapter sows.
    """
    self.set_adapter_losses(loss_factors, site_metrics)
    super().__init__(
        module=module,
        vocabulary=vocabulary,
        optimizer_def=optimizer_def,
        decode_fn=decode_fn,
        inputs_bidirectional_attention=inputs_bidirectional_attention,
        feature_converter_cls=feature_converter_cls,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        loss_normalizing_factor=loss_normalizing_factor,
    )
