# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Routers against values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft import errors
from moe_peft.core import capacity
from moe_peft.core import routing
from moe_peft.core import selection

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
  router = routing.Router(num_experts=num_experts, **options)
  if params is None:
    params = {'kernel': jnp.eye(inputs.shape[-1], num_experts)}
    if options.get('selection') == 'threshold':
      params['threshold_kernel'] = jnp.zeros((inputs.shape[-1], 1))
      params['threshold_bias'] = jnp.zeros(1)
    if options.get('selection') == 'random':
      params = {}
    if options.get('balancing_bias'):
      params['bias'] = jnp.zeros(num_experts)
  rngs = {} if rng is None else {'dropout': jax.random.key(rng)}
  result, _ = router.apply(
      {'params': params}, inputs, tokens, rngs=rngs, mutable=['intermediates']
  )
  return result


TOP_1 = dict(selection='top_k', num_selected_experts=1)


def test_soft_weights_are_the_probabilities():
  result = route()
  np.testing.assert_allclose(result.combine_weights[0], PROBS, rtol=1e-6)
  np.testing.assert_array_equal(result.router_logits, LOGITS)


def test_top_1_keeps_its_probability_or_becomes_one():
  first = np.array([0, 0, 1, 0])
  kept = np.where(np.arange(2) == first[:, None], PROBS, 0)
  weights = route(**TOP_1).combine_weights[0]
  np.testing.assert_allclose(weights, kept, rtol=1e-6)
  weights = route(renormalise=True, **TOP_1).combine_weights[0]
  np.testing.assert_allclose(weights, kept > 0, atol=1e-6)


def test_softmax_over_the_selected_is_renormalised_softmax():
  inputs = jax.random.normal(jax.random.key(0), (2, 5, 6))
  weights = route(
      inputs, selection='top_k', num_selected_experts=3, renormalise=True
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
  weights = route(score='sigmoid').combine_weights
  np.testing.assert_allclose(weights, 1 / (1 + np.exp(-LOGITS)), rtol=1e-6)


def test_threshold():
  # tau = sigmoid(0) / num_experts = 1/4.
  weights = route(selection='threshold').combine_weights[0]
  np.testing.assert_allclose(weights, np.maximum(PROBS - 0.25, 0), atol=1e-6)
  assert (weights[1] > 0).all() and (weights[3] > 0).sum() == 1


def test_threshold_always_leaves_an_expert():
  inputs = jax.random.normal(jax.random.key(0), (4, 50, 8))
  weights = route(inputs, selection='threshold', renormalise=True)
  np.testing.assert_allclose(
      weights.combine_weights.sum(-1), np.ones((4, 50)), atol=1e-5
  )


def test_random_draws_while_training_and_averages_after():
  inputs = jnp.zeros((2, 40, 5))
  options = dict(selection='random', num_selected_experts=2)
  weights = route(inputs, rng=0, **options).combine_weights
  np.testing.assert_array_equal((weights > 0).sum(-1), np.full((2, 40), 2))
  np.testing.assert_allclose(weights.sum(-1), 1)
  assert len(np.unique(np.asarray(weights[0]), axis=0)) > 3
  batch = route(inputs, rng=0, unit='batch', **options).combine_weights
  assert len(np.unique(np.asarray(batch).reshape(-1, 5), axis=0)) == 1
  after = route(inputs, **options).combine_weights
  np.testing.assert_allclose(after, np.full((2, 40, 5), 0.2))


def test_gate_dropout_comes_before_the_selection():
  inputs = jnp.broadcast_to(jnp.array([3.0, 2.0, 1.0, 0.0]), (1, 400, 4))
  weights = route(inputs, rng=0, gate_dropout=0.5, **TOP_1).combine_weights[0]
  probs = jax.nn.softmax(jnp.array([3.0, 2.0, 1.0, 0.0]))
  # The best expert that was not dropped, scaled by 1 / (1 - 0.5).
  for e in range(4):
    share = (weights[:, e] > 0).mean()
    np.testing.assert_allclose(share, 0.5 ** (e + 1), atol=0.08)
    np.testing.assert_allclose(weights[:, e].max(), 2 * probs[e], rtol=1e-5)
  assert (weights.sum(-1) == 0).any()  # All four dropped.
  kept = route(inputs, gate_dropout=0.5, **TOP_1).combine_weights
  np.testing.assert_allclose(kept[..., 0], probs[0] * np.ones((1, 400)))


def test_jitter_only_while_training():
  plain = route().router_logits
  np.testing.assert_array_equal(route(jitter=0.1).router_logits, plain)
  ratio = route(jitter=0.1, rng=0).router_logits[..., 0] / plain[..., 0]
  moved = np.abs(np.asarray(ratio)[0, [0, 1, 3]] - 1)
  assert (moved > 0).all() and (moved < 0.1001).all()


def test_beside_is_the_product_and_changes_nothing():
  matrix = jax.random.normal(jax.random.key(0), (2, 3))
  router = routing.Router(num_experts=2)
  params = {'params': {'kernel': jnp.eye(2)}}
  with_product = router.apply(params, LOGITS, None, matrix.T)
  np.testing.assert_allclose(with_product.product, LOGITS @ matrix, rtol=1e-6)
  np.testing.assert_allclose(
      with_product.combine_weights, route().combine_weights, rtol=1e-6
  )


def test_inactive_experts_get_nothing():
  router = routing.Router(num_experts=2)
  result = router.apply(
      {'params': {'kernel': jnp.eye(2)}},
      LOGITS,
      None,
      None,
      jnp.array([False, True]),
  )
  np.testing.assert_array_equal(
      result.combine_weights, jnp.broadcast_to(jnp.array([0.0, 1.0]), (1, 4, 2))
  )


def test_heads_share_a_kernel():
  inputs = jnp.concatenate([LOGITS, 2 * LOGITS], axis=-1)  # Two heads of two.
  result = route(
      inputs,
      num_experts=2,
      unit='head',
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
      tokens=routing.Tokens(valid=valid), unit='sequence', causal=False
  ).combine_weights
  # Mean logits of the three real tokens: (1, 1/3).
  want = jax.nn.softmax(jnp.array([1.0, 1 / 3]))
  np.testing.assert_allclose(weights[0], np.tile(want, (4, 1)), rtol=1e-6)
  packed = routing.Tokens(valid=valid, segment_ids=jnp.array([[1, 1, 2, 0]]))
  weights = route(tokens=packed, unit='sequence', causal=False).combine_weights
  first = jax.nn.softmax(jnp.array([1.5, 0.0]))
  np.testing.assert_allclose(weights[0, :2], np.tile(first, (2, 1)), rtol=1e-6)
  np.testing.assert_allclose(weights[0, 2], PROBS[2], rtol=1e-6)


def test_sequence_in_a_decoder_reads_the_prompt():
  tokens = routing.Tokens(
      prompt=LOGITS,
      prompt_valid=jnp.array([[True, False, True, False]]),
      segment_ids=jnp.array([[2, 1]]),
      prompt_segment_ids=jnp.array([[1, 1, 2, 0]]),
  )
  inputs = jnp.zeros((1, 2, 2))
  weights = route(inputs, tokens, unit='sequence').combine_weights[0]
  np.testing.assert_allclose(weights, PROBS[[2, 0]], rtol=1e-6)


def test_external_embedding():
  tokens = routing.Tokens(embedding=LOGITS[:, 0])
  weights = route(tokens=tokens, unit='embedding').combine_weights[0]
  np.testing.assert_allclose(weights, np.tile(PROBS[0], (4, 1)), rtol=1e-6)


def test_balancing_bias_selects_and_learns_from_the_load():
  options = dict(balancing_bias=True, **TOP_1)
  params = {'kernel': jnp.eye(2), 'bias': jnp.array([-0.5, 0.5])}

  def total(params):
    return route(params=params, **options).combine_weights.sum()

  result = route(params=params, **options)
  # Biased: (0.38, 0.62), (0.23, 0.77), (-0.23, 1.23), (0.45, 0.55) + ...
  chosen = np.argmax(PROBS + np.array([-0.5, 0.5]), axis=-1)
  want = np.where(np.arange(2) == chosen[:, None], PROBS, 0)
  np.testing.assert_allclose(result.combine_weights[0], want, rtol=1e-6)
  grad = jax.grad(total)(params)['bias']
  load = np.bincount(chosen, minlength=2)
  np.testing.assert_array_equal(grad, np.sign(load - load.mean()))
  assert np.abs(grad).max() == 1


def test_metrics_leave_padding_out():
  valid = jnp.array([[True, True, True, False]])
  padded = route(tokens=routing.Tokens(valid=valid), **TOP_1).metrics
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


def test_sira_form_of_the_loss():
  switch = route(**TOP_1).metrics['auxiliary_loss']
  sira = route(load_balance='sira', **TOP_1).metrics['auxiliary_loss']
  np.testing.assert_allclose(sira * 2**2, switch, rtol=1e-6)


def test_router_is_float32_in_bfloat16():
  result = route(LOGITS.astype(jnp.bfloat16))
  assert result.router_logits.dtype == jnp.float32
  assert result.combine_weights.dtype == jnp.float32


def test_select_top_k_is_top_k():
  # With ties: of equal scores the first wins.
  scores = jax.random.randint(jax.random.key(0), (3, 40, 6), 0, 4) / 4.0
  for k in range(1, 7):
    _, indices = jax.lax.top_k(scores, k)
    want = jax.nn.one_hot(indices, 6).sum(axis=-2) > 0
    for number in (k, jnp.array(k)):
      got = selection.select_top_k(scores, number)
      np.testing.assert_array_equal(got, want)


LIMIT = capacity.Capacity(expert_capacity=2)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (dict(num_selected_experts=3, selection='top_k'), 'NUM_EXPERTS = 2'),
        (dict(selection='top_k'), 'num_selected_experts'),
        (dict(num_selected_experts=1), "selection = 'top_k'"),
        (dict(score='tanh'), 'softmax, sigmoid'),
        (dict(selection='best'), 'expert_choice'),
        (dict(gate_dropout=1.0), 'gate_dropout'),
        (dict(jitter=-0.1), 'jitter'),
        (dict(unit='batch'), "'random'"),
        (dict(unit='head'), 'MoV'),
        (dict(unit='embedding'), 'inputs_embedding'),
        (dict(unit='sequence'), 'encoder'),
        (dict(selection='expert_choice', capacity=LIMIT), 'SITES'),
        (dict(selection='expert_choice', causal=False), 'capacity'),
        (dict(capacity=LIMIT), 'limits a selection'),
        (dict(capacity=capacity.Capacity(), **TOP_1), 'exactly one'),
        (
            dict(
                capacity=capacity.Capacity(
                    expert_capacity=1, priority='probability'
                ),
                **TOP_1,
            ),
            'SITES',
        ),
        (
            dict(
                capacity=capacity.Capacity(
                    expert_capacity=1, group_size=3, at_evaluation=True
                ),
                **TOP_1,
            ),
            'group_size = 3',
        ),
    ],
)
def test_impossible_options(options, words):
  with pytest.raises(errors.UserError, match=words):
    route(**options)


def test_packed_rows_have_no_external_embedding():
  tokens = routing.Tokens(
      embedding=LOGITS[:, 0], segment_ids=jnp.array([[1, 1, 2, 2]])
  )
  with pytest.raises(errors.UserError, match='packing'):
    route(tokens=tokens, unit='embedding')
