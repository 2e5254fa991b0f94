# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Routers against values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import capacity
from moe_peft.core import losses
from moe_peft.core import router_losses
from moe_peft.core import routing
from moe_peft.core import scores
from moe_peft.core import selection
from moe_peft.core import tokens as tokens_lib
from moe_peft.methods import adamix
from moe_peft.methods import adamole
from moe_peft.methods import expert_choice
from moe_peft.methods import flylora
from moe_peft.methods import smora
from tests.refusals import refused

# One row of four tokens whose features are their logits (the kernel is the
# identity): probabilities are 1/(1+e^-d) for two experts d apart.
LOGITS = jnp.array([[[2.0, 0.0], [1.0, 0.0], [0.0, 1.0], [3.0, 0.0]]])
PROBS = np.stack(
    [1 / (1 + np.exp([-2.0, -1.0, 1.0, -3.0])),
     1 / (1 + np.exp([2.0, 1.0, -1.0, 3.0]))], axis=-1,
)  # fmt: skip


def route(inputs=LOGITS, tokens=None, rng=None, params=None, **options):
  """Routes with an identity kernel; returns the Routing."""
  num_experts = options.pop('num_experts', inputs.shape[-1])
  reads = {k: options.pop(k) for k in ('num_heads', 'causal') if k in options}
  router = routing.Router(
      num_experts=num_experts, reads=routing.Features(**reads), **options
  )
  if params is None:
    params = {'kernel': jnp.eye(inputs.shape[-1], num_experts)}
    if options.get('scores') == adamole.ThresholdScores():
      params['threshold_kernel'] = jnp.zeros((inputs.shape[-1], 1))
      params['threshold_bias'] = jnp.zeros(1)
    if options.get('scores') == adamix.NoScores():
      params = {}
    if isinstance(options.get('select'), smora.BiasedTopK):
      params['bias'] = jnp.zeros(num_experts)
  rngs = {} if rng is None else {'dropout': jax.random.key(rng)}
  run = jax.jit(
      lambda params, inputs, tokens: router.apply(
          {'params': params}, inputs, tokens, rngs=rngs,
          mutable=['intermediates'],
      )[0]
  )
  return run(params, inputs, tokens)


TOP_1 = dict(select=selection.TopK(k=1))
THRESHOLD = dict(
    scores=adamole.ThresholdScores(), select=adamole.Threshold(normalize=False)
)
SEQUENCE = dict(scores=scores.SequenceScores())


def test_soft_weights_are_the_probabilities():
  result = route()
  np.testing.assert_allclose(result.combine_weights[0], PROBS, rtol=1e-6)
  np.testing.assert_array_equal(result.router_logits, LOGITS)


def test_top_1_keeps_its_probability_or_becomes_one():
  first = np.array([0, 0, 1, 0])
  kept = np.where(np.arange(2) == first[:, None], PROBS, 0)
  weights = route(**TOP_1).combine_weights[0]
  np.testing.assert_allclose(weights, kept, rtol=1e-6)
  alone = selection.TopK(k=1, normalize=True)
  with pytest.warns(UserWarning, match='NORMALIZE = False'):
    weights = route(select=alone).combine_weights[0]
  np.testing.assert_allclose(weights, kept > 0, atol=1e-6)


def test_softmax_over_the_selected_is_normalized_softmax():
  inputs = jax.random.normal(jax.random.key(0), (2, 5, 6))
  weights = route(
      inputs, select=selection.TopK(k=3, normalize=True)
  ).combine_weights
  kept = np.sort(inputs, axis=-1)[..., -3:-2]
  want = jax.nn.softmax(jnp.where(inputs >= kept, inputs, -jnp.inf))
  np.testing.assert_allclose(weights, want, atol=1e-6)


def test_metrics_are_computed_where_they_can_be_sown():
  router = routing.Router(num_experts=2)
  params = {'params': {'kernel': jnp.eye(2)}}
  assert not router.apply(params, LOGITS).metrics
  result, _ = router.apply(params, LOGITS, mutable=['intermediates'])
  assert result.metrics.keys() >= {'auxiliary_loss', 'router_entropy'}


def test_sigmoid_scores():
  select = smora.BiasedTopK(k=2, normalize=False)
  weights = route(select=select).combine_weights
  np.testing.assert_allclose(weights, 1 / (1 + np.exp(-LOGITS)), rtol=1e-6)


def test_threshold():
  # tau = sigmoid(0) / num_experts = 1/4.
  weights = route(**THRESHOLD).combine_weights[0]
  np.testing.assert_allclose(weights, np.maximum(PROBS - 0.25, 0), atol=1e-6)
  assert (weights[1] > 0).all() and (weights[3] > 0).sum() == 1


def test_threshold_always_leaves_an_expert():
  inputs = jax.random.normal(jax.random.key(0), (4, 50, 8))
  weights = route(
      inputs, scores=adamole.ThresholdScores(), select=adamole.Threshold()
  )
  np.testing.assert_allclose(
      weights.combine_weights.sum(-1), np.ones((4, 50)), atol=1e-5
  )


@pytest.mark.slow
def test_random_draws_while_training_and_averages_after():
  inputs = jnp.zeros((2, 40, 5))
  options = dict(
      scores=adamix.NoScores(), select=adamix.RandomChoice(k=2)
  )
  drawn = set()
  for seed in range(6):
    weights = route(inputs, rng=seed, **options).combine_weights
    np.testing.assert_array_equal((weights > 0).sum(-1), np.full((2, 40), 2))
    np.testing.assert_allclose(weights.sum(-1), 1)
    (same,) = np.unique(np.asarray(weights).reshape(-1, 5), axis=0)
    drawn.add(tuple(same))
  assert len(drawn) > 2
  after = route(inputs, **options).combine_weights
  np.testing.assert_allclose(after, np.full((2, 40, 5), 0.2))


def test_gate_dropout_comes_before_the_selection():
  inputs = jnp.broadcast_to(jnp.array([3.0, 2.0, 1.0, 0.0]), (1, 400, 4))
  drop = dict(select=selection.TopK(k=1, dropout=0.5))
  weights = route(inputs, rng=0, **drop).combine_weights[0]
  probs = jax.nn.softmax(jnp.array([3.0, 2.0, 1.0, 0.0]))
  # The best expert that was not dropped, scaled by 1 / (1 - 0.5).
  for e in range(4):
    share = (weights[:, e] > 0).mean()
    np.testing.assert_allclose(share, 0.5 ** (e + 1), atol=0.08)
    np.testing.assert_allclose(weights[:, e].max(), 2 * probs[e], rtol=1e-5)
  assert (weights.sum(-1) == 0).any()  # All four dropped.
  kept = route(inputs, **drop).combine_weights
  np.testing.assert_allclose(kept[..., 0], probs[0] * np.ones((1, 400)))


def test_a_product_with_its_rows_is_what_it_would_compute():
  router = routing.Router(num_experts=2)
  params = {'params': {'kernel': jnp.array([[1.0, 2.0], [3.0, 4.0]])}}
  rows = router.apply(params, 2, method='rows')
  np.testing.assert_array_equal(rows, [[1.0, 3.0], [2.0, 4.0]])
  given = router.apply(params, LOGITS, product=LOGITS @ rows.T)
  own = router.apply(params, LOGITS)
  np.testing.assert_allclose(
      given.combine_weights, own.combine_weights, rtol=1e-6
  )


def test_inactive_experts_get_nothing():
  router = routing.Router(num_experts=2)
  result = router.apply(
      {'params': {'kernel': jnp.eye(2)}},
      LOGITS,
      active=jnp.array([False, True]),
  )
  np.testing.assert_array_equal(
      result.combine_weights, jnp.broadcast_to(jnp.array([0.0, 1.0]), (1, 4, 2))
  )


@pytest.mark.parametrize(
    'router,params',
    [
        (flylora.FlyLoRARouter(num_experts=2, select=flylora.Largest(k=2)),
         {'bias': jnp.zeros(2)}),
        (adamix.AdaMixRouter(num_experts=2, select=adamix.RandomChoice(k=2)),
         {}),
    ],
)
def test_what_is_inactive_gets_nothing_though_fewer_than_k_are_left(
    router, params
):
  result = router.apply(
      {'params': params}, LOGITS, active=jnp.array([False, True]),
      rngs={'dropout': jax.random.key(0)},
  )
  np.testing.assert_array_equal(result.combine_weights[0, 0], [0.0, 1.0])


@pytest.mark.parametrize(
    'select,form',
    [
        (selection.TopK(k=1), 'switch'),
        (smora.BiasedTopK(k=1, softmax=True, normalize=False), 'sira'),
    ],
)
def test_masked_experts_count_in_no_loss(select, form):
  """As layers of a scan have them, in the place of layers with two experts."""
  options = dict(
      select=select,
      losses=(
          losses.LoadBalance(form), losses.RouterZ(), router_losses.Variance(),
          router_losses.JensenShannon(), router_losses.Tsallis(),
      ),
  )

  def run(num_experts, active):
    def objective(params):
      found = routing.Router(num_experts, **options).apply(
          {'params': params}, LOGITS, active=active, mutable=['intermediates']
      )[0]
      loss = sum(x for k, x in found.metrics.items() if k.endswith('_loss'))
      return loss, found

    params = {'kernel': jnp.eye(2, num_experts), 'bias': jnp.zeros(num_experts)}
    return jax.value_and_grad(objective, has_aux=True)(params)

  (_, want), want_grads = run(2, None)
  (_, got), grads = run(5, jnp.arange(5) < 2)
  for name, value in want.metrics.items():
    np.testing.assert_allclose(
        got.metrics[name], value, rtol=1e-5, err_msg=name
    )
  for name, value in want_grads.items():
    np.testing.assert_allclose(
        grads[name][..., :2], value, rtol=1e-4, atol=1e-6, err_msg=name
    )


def test_the_threshold_is_that_of_the_experts_that_are_there():
  """The lesser shares of two are below 1 / 2; some are above 1 / 5."""

  def run(num_experts, active):
    router = adamole.AdaMoLERouter(num_experts)
    params = {
        'kernel': jnp.eye(2, num_experts), 'threshold_kernel': jnp.ones((2, 1)),
        'threshold_bias': jnp.ones(1),
    }
    return router.apply({'params': params}, LOGITS, active=active)

  want = run(2, None).combine_weights
  got = run(5, jnp.arange(5) < 2).combine_weights
  np.testing.assert_allclose(got[..., :2], want, atol=1e-6)


def test_heads_share_a_kernel():
  inputs = jnp.concatenate([LOGITS, 2 * LOGITS], axis=-1)  # Two heads of two.
  result = route(
      inputs,
      num_experts=2,
      scores=scores.HeadScores(),
      num_heads=2,
      params={'kernel': jnp.eye(2)},
  )
  weights = result.combine_weights.reshape(1, 4, 2, 2)
  np.testing.assert_allclose(weights[:, :, 0], PROBS[None], rtol=1e-6)
  np.testing.assert_allclose(
      weights[:, :, 1], jax.nn.softmax(2 * LOGITS), rtol=1e-6
  )


def test_sequence_mean_respects_padding_and_packing():
  valid = jnp.array([[True, True, True, False]])
  weights = route(
      tokens=tokens_lib.Tokens(valid=valid), **SEQUENCE, causal=False
  ).combine_weights
  # Mean logits of the three real tokens: (1, 1/3).
  want = jax.nn.softmax(jnp.array([1.0, 1 / 3]))
  np.testing.assert_allclose(weights[0], np.tile(want, (4, 1)), rtol=1e-6)
  packed = tokens_lib.Tokens(valid=valid, segment_ids=jnp.array([[1, 1, 2, 0]]))
  weights = route(tokens=packed, **SEQUENCE, causal=False).combine_weights
  first = jax.nn.softmax(jnp.array([1.5, 0.0]))
  np.testing.assert_allclose(weights[0, :2], np.tile(first, (2, 1)), rtol=1e-6)
  np.testing.assert_allclose(weights[0, 2], PROBS[2], rtol=1e-6)


def test_sequence_in_a_decoder_reads_the_prompt():
  tokens = tokens_lib.Tokens(
      prompt=LOGITS,
      prompt_valid=jnp.array([[True, False, True, False]]),
      segment_ids=jnp.array([[2, 1]]),
      prompt_segment_ids=jnp.array([[1, 1, 2, 0]]),
  )
  inputs = jnp.zeros((1, 2, 2))
  weights = route(inputs, tokens, **SEQUENCE).combine_weights[0]
  np.testing.assert_allclose(weights, PROBS[[2, 0]], rtol=1e-6)


def test_balancing_bias_selects_and_learns_from_the_load():
  options = dict(select=smora.BiasedTopK(k=1, normalize=False))
  params = {'kernel': jnp.eye(2), 'bias': jnp.array([-0.5, 0.5])}

  def total(params):
    return route(params=params, **options).combine_weights.sum()

  result = route(params=params, **options)
  scores = 1 / (1 + np.exp(-np.asarray(LOGITS[0]))) + np.array([-0.5, 0.5])
  chosen = np.argmax(scores, axis=-1)
  want = np.where(np.arange(2) == chosen[:, None], scores, 0)
  np.testing.assert_allclose(result.combine_weights[0], want, rtol=1e-6)
  grad = jax.grad(total)(params)['bias']
  load = np.bincount(chosen, minlength=2)
  np.testing.assert_array_equal(grad, np.sign(load - load.mean()))
  assert np.abs(grad).max() == 1


def test_metrics_leave_padding_out():
  valid = jnp.array([[True, True, True, False]])
  padded = route(tokens=tokens_lib.Tokens(valid=valid), **TOP_1).metrics
  short = route(LOGITS[:, :3], **TOP_1).metrics
  for name, value in short.items():
    np.testing.assert_allclose(padded[name], value, rtol=1e-6, err_msg=name)
  p = PROBS[:3]
  # Two tokens choose expert 0 and one expert 1: E * sum_e load_e * prob_e.
  want = 2 * (2 / 3 * p[:, 0].mean() + 1 / 3 * p[:, 1].mean())
  np.testing.assert_allclose(short['auxiliary_loss'], want, rtol=1e-6)
  z = np.log(np.exp([2.0, 1.0, 0.0]) + np.exp([0.0, 0.0, 1.0]))
  np.testing.assert_allclose(short['router_z_loss'], (z**2).mean(), rtol=1e-6)
  np.testing.assert_allclose(
      short['router_confidence'], p.max(axis=-1).mean(), rtol=1e-6
  )
  entropy = -(p * np.log(p)).sum(-1).mean() / np.log(2)
  np.testing.assert_allclose(short['router_entropy'], entropy, rtol=1e-6)
  np.testing.assert_allclose(short['fraction_tokens_left_behind'], 0, atol=1e-6)
  np.testing.assert_allclose(short['expert_usage'], 0.5, rtol=1e-6)
  np.testing.assert_allclose(short['effective_experts'], 1.0, rtol=1e-6)
  soft = route().metrics['effective_experts']
  np.testing.assert_allclose(soft, (1 / (PROBS**2).sum(-1)).mean(), rtol=1e-5)


def test_sira_form_of_the_loss():
  switch = route(**TOP_1).metrics['auxiliary_loss']
  form = losses.LoadBalance('sira')
  sira = route(losses=(form,), **TOP_1).metrics['auxiliary_loss']
  np.testing.assert_allclose(sira * 2**2, switch, rtol=1e-6)


def test_router_is_float32_in_bfloat16():
  result = route(LOGITS.astype(jnp.bfloat16))
  assert result.router_logits.dtype == jnp.float32
  assert result.combine_weights.dtype == jnp.float32


# Few are compared, each with each; of many the best are taken in turn.
@pytest.mark.parametrize('num_experts', [6, 40])
def test_select_top_k_is_top_k(num_experts):
  # With ties: of equal scores the first wins.
  shape = (3, 40, num_experts)
  scores = jax.random.randint(jax.random.key(0), shape, 0, 4) / 4.0
  scores = scores.at[0].set(-jnp.inf)
  for k in (1, 2, 3, 6, num_experts):
    _, indices = jax.lax.top_k(scores, k)
    want = jax.nn.one_hot(indices, num_experts).sum(axis=-2) > 0
    for number in (k, jnp.array(k)):
      got = selection.select_top_k(scores, number)
      np.testing.assert_array_equal(got, want)


def test_padding_that_nobody_described_is_refused():
  unknown = tokens_lib.Tokens(known=False)
  router = routing.Router(num_experts=2, **TOP_1)
  params = {'params': {'kernel': jnp.eye(2)}}
  plain = router.apply(params, LOGITS)
  # Weights of tokens do not depend on padding: nothing is refused.
  got = router.apply(params, LOGITS, unknown)
  np.testing.assert_array_equal(got.combine_weights, plain.combine_weights)
  where = 'inject.AdaptedModule.describe_tokens'
  with refused(where, 'tokens_argument', 'all_real'):
    router.apply(params, LOGITS, unknown, mutable=['intermediates'])
  limit = capacity.Capacity(expert_capacity=2, at_evaluation=True)
  with refused(where, 'capacity'):
    router.clone(capacity=limit).apply(params, LOGITS, unknown)
  with refused(where):
    route(tokens=unknown, causal=False, **SEQUENCE)


LIMIT = capacity.Capacity(expert_capacity=2)
FIRST = capacity.Capacity(expert_capacity=1, priority='probability')
SMALL = capacity.Capacity(expert_capacity=1, group_size=3, at_evaluation=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('options', 'where', 'names'),
    [
        (dict(select=selection.TopK(k=3)), 'NUM_SELECTED_EXPERTS',
         ['NUM_EXPERTS = 2']),
        (dict(select=selection.TopK()), 'NUM_SELECTED_EXPERTS', ['None']),
        (dict(select=selection.TopK(k='two')), 'NUM_SELECTED_EXPERTS', []),
        (dict(select=selection.Soft(dropout=1.0)), 'GATE_DROPOUT', ['1.0']),
        (dict(scores=scores.HeadScores()), 'scores.HeadScores',
         ['TokenScores']),
        (SEQUENCE, 'inject.AdaptedModule.describe_tokens', ['SITES']),
        (dict(select=expert_choice.ChooseTokens(), capacity=LIMIT), 'SITES',
         []),
        (dict(select=expert_choice.ChooseTokens(), causal=False),
         'expert_choice.ExpertChoiceRouter.capacity', ['CAPACITY_FACTOR']),
        (dict(capacity=LIMIT), 'capacity.Capacity', ['selection.TopK']),
        (dict(capacity=capacity.Capacity(), **TOP_1), 'capacity.Capacity', []),
        (dict(capacity=FIRST, **TOP_1), 'capacity.Capacity.priority',
         ['SITES']),
        (dict(capacity=SMALL, **TOP_1), 'capacity.Capacity.group_size', ['3']),
        (dict(losses=(losses.LoadBalance('best'),)), 'losses.LoadBalance.form',
         ['switch', 'sira']),
    ],
)
def test_impossible_options(options, where, names):
  with refused(where, *names):
    route(**options)
