# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A decoder that stands alone, routed by the mean of its prompt."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import inject
from moe_peft.core import routing
from moe_peft.core import scores
from moe_peft.core import tokens as tokens_lib
from moe_peft.methods import bank
from moe_peft.methods import molora
from moe_peft.methods import retrieval
from moe_peft.methods import smear
from moe_peft.models import decoder
from moe_peft.models import decoder_only
from tests import refusals
from tests.models import decoder_test

CONFIG = decoder_test.CONFIG
RULES = (
    inject.OutputRule(
        '.*/(query|value|logits_dense)',
        functools.partial(
            molora.MoLoRA,
            num_experts=3,
            rank=2,
            router_factory=functools.partial(
                routing.Router, scores=scores.SequenceScores()
            ),
        ),
    ),
    inject.OutputRule(
        '.*/wo', functools.partial(smear.SMEAR, num_experts=3, rank=4)
    ),
    inject.OutputRule(
        '.*/key',
        functools.partial(
            bank.Bank,
            num_experts=3,
            rank=2,
            router_factory=functools.partial(
                routing.Router, scores=retrieval.RetrievalScores()
            ),
        ),
    ),
)


def adapted(config=CONFIG, **options):
  return inject.AdaptedModule(decoder.Transformer(config), RULES, **options)


def model(config=CONFIG):
  vocabulary = decoder_test.Vocabulary()
  return decoder_only.DecoderOnlyModel(adapted(config), vocabulary, vocabulary)


@functools.cache
def variables():
  """Random parameters with which routers are far from undecided."""
  x = jnp.ones((1, 4), jnp.int32)
  shapes = jax.eval_shape(
      functools.partial(adapted().init, enable_dropout=False),
      jax.random.key(0), x, x,
  )['params']

  def fill(path, leaf):
    name = jax.tree_util.keystr(path)
    rng = np.random.default_rng(list(name.encode()))
    values = rng.normal(size=leaf.shape).astype(np.float32)
    if 'scale' in name:
      return 1 + 0.2 * values
    return values * (0.5 if 'router' in name else 0.3)

  return {'params': jax.tree_util.tree_map_with_path(fill, shapes)}


@jax.jit
def run(ids, in_prompt, segment_ids=None, positions=None):
  """Logits, and the weights of one site, [batch, length, num_experts]."""
  logits, state = adapted().apply(
      variables(), ids, jnp.ones_like(ids), segment_ids, positions,
      enable_dropout=False, in_prompt=in_prompt, mutable=['routing'],
  )
  layer = state['routing']['decoder']['layers_2']['self_attention']['query']
  return logits, layer['adapter']['combine_weights'][0][:, :, 0]


def generate(scan, prompts, num_beams):
  params = variables()['params']
  return jax.jit(
      lambda p, x: model(CONFIG.replace(scan_layers=scan)).generate(
          p, x, 5, num_beams
      )
  )(decoder_test.to_scan(params) if scan else params, prompts)


def mask(*lengths, length=9):
  return jnp.arange(length) < jnp.asarray(lengths)[:, None]


@pytest.mark.slow
def test_an_answer_has_the_routing_of_its_prompt():
  ids = decoder_test.tokens()
  other = ids.at[:, 6:].add(1)
  (logits, weights), (changed, others) = (
      run(x, mask(4, 5)) for x in (ids, other)
  )
  np.testing.assert_allclose(weights, others, atol=1e-6)
  for row, prompt in enumerate((4, 5)):
    np.testing.assert_allclose(
        weights[row, prompt - 1 :] - weights[row, prompt - 1], 0, atol=1e-6
    )
  assert np.ptp(weights[:, :4], axis=1).max() > 0.05
  np.testing.assert_allclose(logits[:, :6], changed[:, :6], atol=1e-5)
  assert np.abs(logits[:, 6:] - changed[:, 6:]).max() > 0.1


def test_no_token_sees_a_later_one_of_the_prompt():
  ids = decoder_test.tokens()
  (logits, _), (changed, _) = (
      run(x, mask(9, 9)) for x in (ids, ids.at[:, 5].add(1))
  )
  np.testing.assert_allclose(logits[:, :5], changed[:, :5], atol=1e-5)


@pytest.mark.slow
def test_packed_examples_have_their_own_prompts():
  first = decoder_test.tokens(1, 4)
  second = decoder_test.tokens(1, 5, seed=1)
  nothing = jnp.zeros((1, 3), jnp.int32)
  ids = jnp.concatenate([first, second, nothing], axis=1)
  logits, _ = run(
      ids,
      jnp.asarray([[1, 1, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0]]),
      jnp.asarray([[1] * 4 + [2] * 5 + [0] * 3]),
      jnp.asarray([[*range(4), *range(5), 0, 0, 0]]),
  )
  alone, _ = run(first, mask(2, length=4))
  np.testing.assert_allclose(logits[:, :4], alone, atol=1e-4)
  alone, _ = run(second, mask(3, length=5))
  np.testing.assert_allclose(logits[:, 4:9], alone, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('scan', [False, True])
def test_generation_with_a_cache_equals_full_passes(scan):
  """Prompts of different lengths, one of them empty."""
  prompts = decoder_test.tokens(3, 6).at[1, 3:].set(0).at[2].set(0)
  answers = generate(scan, prompts, 1)
  expected = []
  for row, length in zip(prompts, (6, 3, 0), strict=True):
    ids = [0, *row[:length].tolist()]
    for _ in range(5):
      padded = jnp.asarray([ids + [0] * (12 - len(ids))])
      logits, _ = run(padded, mask(length + 1, length=12))
      ids.append(int(logits[0, len(ids) - 1].argmax()))
      if ids[-1] == decoder_test.Vocabulary.eos_id:
        break
    new = ids[length + 1 :]
    expected.append(new + [0] * (5 - len(new)))
  assert answers.tolist() == expected


@pytest.mark.slow
def test_beams_know_their_prompt_outside_of_a_scan_too():
  prompts = decoder_test.tokens(3, 6).at[1, 3:].set(0).at[2].set(0)
  np.testing.assert_array_equal(
      generate(True, prompts, 3), generate(False, prompts, 3)
  )


@pytest.mark.slow
def test_the_model_says_which_tokens_are_the_prompt():
  ids = decoder_test.tokens(2, 8)
  batch = {
      'decoder_input_tokens': ids,
      'decoder_segment_ids': jnp.ones_like(ids),
      'decoder_causal_attention': mask(3, 5, length=8).astype(jnp.int32),
  }
  logits, _ = jax.jit(model().apply)(variables()['params'], batch)
  expected, _ = run(ids, mask(3, 5, length=8))
  np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_nothing_is_guessed_of_other_calls():
  x = jnp.ones((1, 4), jnp.int32)
  network = adapted(describe_tokens=tokens_lib.all_real)
  with refusals.refused(
      'inject.AdaptedModule.describe_tokens', 'in_prompt', 'SITES'
  ):
    jax.eval_shape(
        functools.partial(network.apply, enable_dropout=False),
        variables(), x, x,
    )
