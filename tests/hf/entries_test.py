# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Parameters and Hugging Face tensors become each other, in all layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import trainable
from moe_peft.hf import adapter_specs
from moe_peft.hf import base_config
from moe_peft.hf import decoder_base
from moe_peft.hf import entries
from moe_peft.hf import networks
from moe_peft.hf import t5_base
from moe_peft.hf import t5_names
from moe_peft.models import decoder
from moe_peft.models import t5
from tests import refusals
from tests.hf import adapted
from tests.hf import conftest as models
from tests.hf import import_decoder_test

NETWORKS = {
    't5': (t5_names.entries, t5_base, models.SMALL, t5, 3),
    'llama': (
        decoder_base.entries, decoder_base, import_decoder_test.SMALL,
        decoder, 2,
    ),
}


@pytest.mark.parametrize('layout', ['t5', 'scan'])
@pytest.mark.parametrize('network', list(NETWORKS))
def test_entries_are_the_parameters_of_our_model(network, layout):
  list_entries, base, hf_config, module, num_inputs = NETWORKS[network]
  config = base.from_hf(hf_config, layout)
  ones = [jnp.ones((1, 4), jnp.int32)] * num_inputs
  variables = jax.eval_shape(
      lambda: module.Transformer(config).init(
          jax.random.key(0), *ones, enable_dropout=False
      )
  )
  needed = trainable.flatten(variables['params'])
  found = {x.path: x.full_shape for x in list_entries(config, layout)}
  assert found == {path: x.shape for path, x in needed.items()}


@pytest.mark.parametrize('layout', entries.LAYOUTS)
def test_tensors_are_found_again_in_the_parameters(layout):
  tensors = models.random_tensors(models.SMALL)
  config = t5_base.from_hf(models.SMALL, layout)
  found = t5_names.entries(config, layout)
  assert entries.source_shapes(found) == {
      name: x.shape for name, x in tensors.items()
  }
  for entry in found:
    parameter = entry.convert([tensors[x] for x in entry.sources])
    assert parameter.shape == entry.full_shape
    for index, source in enumerate(entry.sources):
      np.testing.assert_array_equal(
          entry.revert(parameter, index), tensors[source], err_msg=source
      )


@pytest.mark.parametrize(
    ('family', 'apart'), [('t5', 0), ('llama', 0), ('phi3', 3)]
)
def test_layers_are_modules_with_a_weight_each(family, apart):
  trained = adapted.make('lora', family)
  layers, depth = trained.layers, 2
  weights = trained.network.module_shapes(trained.config, trained.kind)
  activations = {x: y for x, y in layers.items() if x.endswith('/act')}
  modules = {x.module for x in layers.values()}
  assert len(layers) == len(modules) + apart * depth
  assert len(weights) == len(modules) - len(activations)
  assert {x.scales.module for x in activations.values()} <= set(weights)
  with refusals.refused('MODEL', 'gin/models/'):
    networks.of(None)


def test_a_written_config_is_read_as_the_same_model():
  config = t5_base.from_hf(models.SMALL)
  assert t5_base.from_hf(t5_base.to_hf(config, {})) == config
  with refusals.refused('t5.T5Config.mlp_activations', 'sigmoid', 'gelu'):
    t5_base.to_hf(config.replace(mlp_activations=('sigmoid',)), {})


def test_sizes_are_positive_integers():
  assert base_config.integer('eos_token_id', 0, minimum=0) == 0
  for value in (0, -1, 2.0, '2', True, None):
    with refusals.refused('d_model', repr(value)):
      base_config.sizes({'d_model': value}, {'d_model': 'emb_dim'})


@pytest.mark.slow
def test_a_refusal_names_method_and_layer():
  error = adapter_specs.refusal('encoder/layers_0/mlp/wo', 'Own', 'why.', 'X')
  assert error.where == 'X'
  assert 'Own' in error.what and 'encoder/layers_0/mlp/wo' in error.what
