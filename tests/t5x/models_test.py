# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Names that the T5X models refuse, and types that initial variables get."""

from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from tests import refusals

pytest.importorskip('t5x')
models = pytest.importorskip('moe_peft.t5x.models')
initializer = pytest.importorskip('moe_peft.t5x.initializer')
pytestmark = pytest.mark.t5x


def make(**options):
  vocabulary = SimpleNamespace(eos_id=1)
  return models.AdaptedDecoderOnlyModel(
      module=None, vocabulary=vocabulary, optimizer_def=None, **options
  )


@pytest.mark.parametrize(
    ('options', 'macro'),
    [
        ({'loss_factors': {'auxilary': 1.0}}, 'LOSS_FACTORS'),
        ({'site_metrics': ('entropy',)}, 'SITE_METRICS'),
    ],
)
def test_what_no_adapter_sows_is_refused(options, macro):
  with refusals.refused(macro, 'router_entropy'):
    make(**options)


def test_a_misspelled_option_is_an_error():
  make(
      loss_factors={'auxiliary_loss': 0.1},
      site_metrics=('expert_usage',),
      loss_normalizing_factor='NUM_REAL_TARGET_TOKENS',
  )
  with pytest.raises(TypeError, match='z_los'):
    make(z_los=0.1)


def test_features_are_token_ids():
  seen = {}

  class Model:

    def get_initial_variables(self, rng, input_shapes, input_types):
      del rng, input_shapes
      seen.update(input_types)
      return {'params': {'x': jnp.zeros(2)}}

  initializer.AdapterStateInitializer(
      None,
      Model().get_initial_variables,
      {'decoder_input_tokens': (1, 1)},
      # Devices that a plan names have no memory to check.
      SimpleNamespace(get_mesh_axes=lambda state: None, devices=()),
  )
  assert seen == {'decoder_input_tokens': jnp.int32}
