# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The contract of a first pass: what a rule and its adapters get of it."""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import first_pass
from moe_peft.core import inject
from tests import tiny_network
from tests.checks import tiny
from tests.refusals import refused


class Adds(nn.Module):
  """Outputs plus the hidden states of a first pass, times a parameter."""

  site: object

  @nn.compact
  def __call__(self, inputs, outputs, tokens):
    weight = self.param('weight', nn.initializers.ones, ())
    read = 0.0 if tokens.first_pass is None else tokens.first_pass
    return outputs + weight * read


@dataclasses.dataclass(frozen=True)
class Reads(inject.OutputRule):
  """Hands hidden states on as they are, and twice them in the decoder."""

  states: str = 'encoder|decoder'

  def before_call(self, model, first):
    assert isinstance(first, first_pass.FirstPass)
    found = first.hidden_states(self.states)
    return {of: x if of else 2 * x for of, x in found.items()}


def network(**options):
  config = tiny_network.Config(
      num_encoder_layers=1, num_decoder_layers=1, **options
  )
  return tiny_network.Network(config)


# The last layer of each stack: what it adds is in the outputs as it is.
LAST = '.*/mlp/wo'


def test_adapters_read_the_outputs_of_the_bare_model():
  bare, tokens = network(), tiny_network.tokens()
  module = inject.AdaptedModule(bare, (Reads(LAST, Adds),))
  variables = module.init(jax.random.key(0), *tokens)
  assert 'cache' not in variables  # Nothing decodes here.
  params = variables['params']
  alone = module.apply({'params': params}, *tokens, adapters=False)
  np.testing.assert_array_equal(alone, bare.apply({'params': params}, *tokens))
  found = module.apply({'params': params}, *tokens)
  encoded, decoded = jnp.split(alone, 2, axis=-1)
  want = jnp.concatenate([2 * encoded, 3 * decoded], axis=-1)
  np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


def test_no_gradient_passes():
  """That of the base is the one of its second pass."""
  tokens = tiny_network.tokens()
  module = inject.AdaptedModule(network(), (Reads(LAST, Adds),))
  params = module.init(jax.random.key(0), *tokens)['params']

  def loss(params, adapters):
    outputs = module.apply({'params': params}, *tokens, adapters=adapters)
    return jnp.sum(jnp.sin(jnp.arange(outputs.size)) * outputs.ravel())

  found, want = (
      jax.grad(loss)(params, adapters)['encoder']['embed']['embedding']
      for adapters in (True, False)
  )
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def test_other_rules_read_none():
  tokens = tiny_network.tokens()
  module = inject.AdaptedModule(network(), (inject.OutputRule(LAST, Adds),))
  params = module.init(jax.random.key(0), *tokens)['params']
  np.testing.assert_array_equal(
      module.apply({'params': params}, *tokens),
      module.apply({'params': params}, *tokens, adapters=False),
  )


@pytest.mark.parametrize('states', ['.*/norm', '.*/layers/mlp', '.*/layers'])
def test_modules_without_hidden_states(states):
  """None of that name; one inside of a scan; one with other outputs."""
  module = inject.AdaptedModule(
      network(scan=True), (Reads(LAST, Adds, states=states),)
  )
  with refused('HIDDEN_STATES'):
    jax.eval_shape(lambda: tiny.init(module, jax.random.key(0)))
