# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What tokens are padding: T5X's signature, other arguments, nobody knows."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moe_peft.core import capacity
from moe_peft.core import inject
from moe_peft.core import routing
from moe_peft.core import selection
from moe_peft.core import tokens
from moe_peft.methods import molora
from tests.refusals import refused

WHERE = 'inject.AdaptedModule.describe_tokens'
IDS = jnp.array([[3, 5, 0]])


class Net(nn.Module):
  """Somebody else's network, whose tokens have another name."""

  @nn.compact
  def __call__(self, tokens):
    return nn.Dense(8, name='query')(nn.Embed(16, 8)(tokens))


def adapted(**options):
  router = functools.partial(
      routing.Router,
      select=selection.TopK(k=1),
      capacity=capacity.Capacity(capacity_factor=1.0, at_evaluation=True),
  )
  factory = functools.partial(
      molora.MoLoRA, num_experts=2, rank=2, router_factory=router
  )
  rules = [inject.OutputRule('.*query', factory)]
  return inject.AdaptedModule(Net(), rules, **options)


def init(model, tokens=IDS):
  """The shapes of its parameters."""
  return jax.eval_shape(model.init, jax.random.key(0), tokens)['params']


def call(reads_encoder=False, **arguments):
  return tokens.Call(arguments, reads_encoder)


def test_padding_of_a_foreign_network_takes_no_capacity():
  real = jnp.array([[3, 5, 7, 9]])
  padded = jnp.array([[0] * 12 + [3, 5, 7, 9]])
  model = adapted(describe_tokens=tokens.tokens_argument)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
      lambda x: rng.normal(size=x.shape).astype(np.float32),
      init(model, real),
  )
  run = jax.jit(lambda tokens: model.apply({'params': params}, tokens))
  # Twelve of sixteen tokens are padding: the limits are 2 and 8.
  wide = run(jnp.concatenate([real] * 4, axis=1))
  behind = run(padded)[:, 12:]
  np.testing.assert_allclose(wide[:, :4], behind, rtol=1e-5, atol=1e-5)


def test_a_foreign_network_that_nobody_described_is_refused():
  with refused(WHERE, 'tokens_argument', 'all_real'):
    init(adapted())


def test_an_argument_that_is_not_there_is_named():
  describe = functools.partial(tokens.tokens_argument, name='input_ids')
  with refused('tokens.tokens_argument.name', 'input_ids', 'tokens'):
    init(adapted(describe_tokens=describe))


def test_what_is_no_description_is_refused():
  with refused(WHERE, 'dict'):
    init(adapted(describe_tokens=lambda call: {}))


def test_a_foreign_network_is_told_where_the_prompt_is():
  ids, in_prompt = jnp.array([[3, 5, 0]]), jnp.array([[1, 0, 1]])
  for describe, want in (
      (tokens.tokens_argument, [[True, False, False]]),
      (tokens.all_real, [[True, False, True]]),
  ):
    told = describe(call(tokens=ids, in_prompt=in_prompt))
    np.testing.assert_array_equal(told.in_prompt, want)
    assert describe(call(tokens=ids, in_prompt=None)).in_prompt is None


def test_all_real():
  described = tokens.all_real(call(tokens=IDS))
  assert described.known and described.valid is None


def test_t5x_signature_of_both_stacks():
  arguments = dict(
      encoder_input_tokens=IDS,
      decoder_target_tokens=2 * IDS,
      decoder_input_tokens=IDS,
      encoder_segment_ids=IDS,
      encoded=jnp.ones((1, 3, 4)),
  )
  encoder = tokens.t5x_tokens(call(True, **arguments))
  np.testing.assert_array_equal(encoder.valid, IDS > 0)
  assert encoder.prompt is None
  decoder = tokens.t5x_tokens(call(**arguments))
  np.testing.assert_array_equal(decoder.valid, IDS > 0)
  np.testing.assert_array_equal(decoder.prompt_valid, IDS > 0)
  assert decoder.segment_ids is None
  # In one step of decoding the only token is real, even if its id is 0.
  step = tokens.t5x_tokens(call(**arguments, decode=True))
  assert step.known and step.valid is None


def test_other_signatures_are_unknown():
  assert not tokens.t5x_tokens(call(tokens=IDS)).known
