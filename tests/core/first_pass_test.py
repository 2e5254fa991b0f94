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
from moe_peft.core import tokens as tokens_lib
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


class Noisy(nn.Module):
  """A network with statistics of batches, and random numbers of its own."""

  @nn.compact
  def __call__(self, tokens):
    x = nn.Embed(9, 4, name='encoder')(tokens)
    x += jax.random.normal(self.make_rng('noise'), x.shape)
    x = nn.Dense(4, name='wo')(x)
    return nn.BatchNorm(use_running_average=False, name='batch_norm')(x)


def test_other_collections_and_random_numbers_are_the_models():
  rule = Reads('wo', Adds, states='batch_norm')
  module = inject.AdaptedModule(
      Noisy(), (rule,), describe_tokens=tokens_lib.all_real
  )
  keys = {'params': jax.random.key(0), 'noise': jax.random.key(1)}
  tokens = jnp.arange(6).reshape(2, 3)
  variables = module.init(keys, tokens)
  _, state = module.apply(
      variables, tokens, rngs=keys, mutable=['batch_stats']
  )
  assert state.keys() == {'batch_stats'}
  assert np.abs(state['batch_stats']['batch_norm']['mean']).max() > 0


def test_other_rules_read_none():
  tokens = tiny_network.tokens()
  module = inject.AdaptedModule(network(), (inject.OutputRule(LAST, Adds),))
  params = module.init(jax.random.key(0), *tokens)['params']
  np.testing.assert_array_equal(
      module.apply({'params': params}, *tokens),
      module.apply({'params': params}, *tokens, adapters=False),
  )


@pytest.mark.parametrize(
    ('states', 'scan'),
    [
        ('.*/norm', True), ('.*/layers/mlp', True), ('.*/layers', True),
        ('encoder|decoder|decoder/embed', False),
    ],
)
def test_modules_without_hidden_states(states, scan):
  """None; one inside of a scan; one with other outputs; two of a stack."""
  module = inject.AdaptedModule(
      network(scan=scan), (Reads(LAST, Adds, states=states),)
  )
  with refused('HIDDEN_STATES'):
    jax.eval_shape(lambda: tiny.init(module, jax.random.key(0)))
