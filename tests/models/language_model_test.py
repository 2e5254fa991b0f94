# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Losses and scores of a model whose logits are its only parameter."""

import types

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_peft.models import encoder_decoder
from moe_peft.models import language_model
from moe_peft.models import sown
from moe_peft.models import stack
from tests import refusals

BATCH, LENGTH, VOCAB = 2, 5, 7


class Logits(nn.Module):
  """Takes the arguments of an encoder-decoder and reads none of them."""

  @nn.compact
  def __call__(self, *tokens, enable_dropout):
    del tokens, enable_dropout
    shape = (BATCH, LENGTH, VOCAB)
    return self.param('logits', nn.initializers.normal(2.0), shape)


def _model(**options) -> language_model.LanguageModel:
  vocabulary = types.SimpleNamespace(eos_id=1)
  return encoder_decoder.EncoderDecoderModel(
      Logits(), vocabulary, vocabulary, **options
  )


@pytest.fixture(name='case', scope='module')
def _case():
  """Parameters, their logits, and a batch with padding."""
  params = _model().init(jax.random.key(0), {'inputs': 1, 'targets': 1})
  rng = np.random.default_rng(0)
  batch = {
      'encoder_input_tokens': jnp.ones((BATCH, 3), jnp.int32),
      'decoder_input_tokens': jnp.ones((BATCH, LENGTH), jnp.int32),
      'decoder_target_tokens': jnp.asarray(rng.integers(VOCAB, size=(2, 5))),
      'decoder_loss_weights': jnp.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]),
  }
  return params['params'], params['params']['logits'], batch


def test_inputs_are_tokens_too(case):
  _, _, batch = case
  real = int((batch['decoder_target_tokens'] > 0).sum())
  assert _model().num_tokens(batch) == BATCH * 3 + real


def test_losses_of_adapters_are_weighed_and_logged_as_they_are():
  site = {'wo': {'adapter': {'auxiliary_loss': (jnp.full((1, 1, 1), 3.0),)}}}
  loss, metrics = sown.read(
      {'intermediates': site}, {}, {'auxiliary_loss': 0.5}
  )
  assert loss == 1.5
  assert metrics['auxiliary_loss'].compute() == 3
  assert metrics['routing'] == {}
  with refusals.refused('LOSS_FACTORS', 'router_z_loss'):
    sown.read({'intermediates': site}, {}, {'router_z_loss': 1.0})


@pytest.mark.parametrize('smoothing, z_loss', [(0.0, 0.0), (0.1, 0.5)])
def test_the_loss_is_that_of_smoothed_targets(case, smoothing, z_loss):
  params, logits, batch = case
  model = _model(label_smoothing=smoothing, z_loss=z_loss)
  loss, metrics = model.loss(params, batch)
  weights = batch['decoder_loss_weights']
  targets = jax.nn.one_hot(batch['decoder_target_tokens'], VOCAB)
  smoothed = optax.smooth_labels(targets, smoothing)
  losses = optax.softmax_cross_entropy(logits, smoothed)
  losses += z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2
  np.testing.assert_allclose(loss, (losses * weights).sum() / 7, rtol=1e-5)
  # What is logged is the loss of the targets themselves.
  plain = (optax.softmax_cross_entropy(logits, targets) * weights).sum() / 7
  np.testing.assert_allclose(metrics['loss'].compute(), plain, rtol=1e-5)
  hits = (logits.argmax(-1) == batch['decoder_target_tokens']) * weights
  np.testing.assert_allclose(metrics['accuracy'].compute(), hits.sum() / 7)


def test_the_score_is_the_log_likelihood_of_the_targets(case):
  params, _, batch = case
  loss, _ = _model(z_loss=0.0).loss(params, batch, normalizer=1.0)
  scores = _model().score(params, batch)
  assert scores.shape == (BATCH,)
  np.testing.assert_allclose(scores.sum(), -loss, rtol=1e-5)


def test_fewer_beams_than_one_are_refused():
  with refusals.refused('num_beams', -1):
    _model().generate({}, jnp.ones((1, 2), jnp.int32), 3, num_beams=-1)


def test_fields_are_named_as_gin_writes_them():
  config = types.SimpleNamespace()
  assert stack.field(config, 'emb_dim') == 'types.SimpleNamespace.emb_dim'
