# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Routers over a bank, each against its formula."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import routing
from moe_peft.core import scores as token_scores
from moe_peft.core import selection
from moe_peft.experts import bank_arrays
from moe_peft.methods import bank
from tests import refusals

EXPERTS, IN, OUT, RANK = 4, 7, 5, 3
X = jax.random.normal(jax.random.key(1), (2, 3, IN))


def experts(missing=()):
  """Random experts in singular form; those of `missing` are zero."""
  rng = np.random.default_rng(0)
  pairs = []
  for index in range(EXPERTS):
    down, up = rng.normal(size=(IN, RANK)), rng.normal(size=(RANK, OUT))
    pairs.append(bank_arrays.singular(down, up * (index not in missing), RANK))
  return {
      'lora_a': jnp.stack([a for a, _ in pairs]),
      'lora_b': jnp.stack([b for _, b in pairs]),
  }


def module_of(scores, select, active=None, num_experts=EXPERTS):
  return bank.Bank(
      num_experts=num_experts, rank=RANK, alpha=RANK, active=active,
      router_factory=functools.partial(
          routing.Router, scores=scores, select=select
      ),
  )


def run(params, scores, select, active=None):
  """Outputs on zero outputs of the layer, and the gates."""
  module = module_of(scores, select, active)
  outputs, state = module.apply(
      {'params': params}, X, jnp.zeros((2, 3, OUT)), mutable=['routing']
  )
  return outputs, state['routing']['combine_weights'][0]


def updates(params):
  """The update of each expert, <float>[experts, in, out]."""
  return np.einsum('eir,ero->eio', params['lora_a'], params['lora_b'])


def softmax_of_best(sizes, k):
  """Softmax over the k largest along the last axis, 0 elsewhere."""
  least = np.sort(sizes, axis=-1)[..., -k, None]
  best = np.where(sizes >= least, np.exp(sizes), 0.0)
  return best / best.sum(axis=-1, keepdims=True)


def test_singular_form_is_the_same_update():
  rng = np.random.default_rng(3)
  # Of rank 2, though both have 3.
  down, up = rng.normal(size=(IN, 3)), rng.normal(size=(3, OUT))
  down[:, 2] = down[:, 0]
  a, b = bank_arrays.singular(down, up, 4)
  np.testing.assert_allclose(a @ b, down @ up, atol=1e-5)
  gram = a.T @ a
  np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-5)
  sizes = np.sqrt(np.diag(gram))
  want = np.linalg.svd(down @ up, compute_uv=False)[:2]
  np.testing.assert_allclose(sizes, [*want, 0, 0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(b @ b.T, np.diag([1, 1, 0, 0]), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('missing', [(), (1,)])
def test_arrow_and_spectr_are_what_an_svd_says(missing):
  params = experts(missing)
  full = updates(params)
  vectors = np.stack([np.linalg.svd(x)[0][:, 0] for x in full])
  arrow = np.abs(np.einsum('bli,ei->ble', X, vectors))
  spectr = np.linalg.norm(np.einsum('bli,eio->bleo', X, full), axis=-1)
  for scores, sizes in (
      (bank.ArrowScores(temperature=0.5), arrow),
      (bank.SpectRScores(temperature=0.5), spectr),
  ):
    sizes[..., list(missing)] = -np.inf
    outputs, gates = run(params, scores, selection.TopK(k=2, normalize=True))
    want = softmax_of_best(sizes / 0.5, 2)
    np.testing.assert_allclose(gates, want, atol=1e-5)
    np.testing.assert_allclose(
        outputs, np.einsum('ble,bli,eio->blo', want, X, full), atol=1e-5
    )


def test_gates_compete_as_in_phatgoose():
  params = experts()
  gates = np.random.default_rng(1).normal(size=(IN, EXPERTS))
  gates[:, 3] = 0.0  # It has none.
  normed = lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(
      x.var(-1, keepdims=True) + 1e-5
  )
  sizes = normed(np.asarray(X)) @ normed(gates.T).T / np.sqrt(IN)
  sizes[..., 3] = -np.inf
  params = {**params, 'router': {'gates': jnp.asarray(gates, jnp.float32)}}
  _, found = run(
      params, bank.GateScores(), selection.TopK(k=2, normalize=True)
  )
  np.testing.assert_allclose(found, softmax_of_best(sizes, 2), atol=1e-5)


@pytest.mark.slow
def test_an_expert_that_is_not_active_changes_no_bit():
  kernel = jax.random.normal(jax.random.key(5), (IN, EXPERTS))
  select = selection.TopK(k=2, normalize=True)
  for scores in (
      bank.ArrowScores(), bank.NoScores(), token_scores.TokenScores()
  ):
    params = experts()
    fewer = {k: v[:3] for k, v in params.items()}
    if isinstance(scores, token_scores.TokenScores):
      params['router'] = {'kernel': kernel}
      fewer['router'] = {'kernel': kernel[:, :3]}
    router = functools.partial(routing.Router, scores=scores, select=select)
    small = bank.Bank(
        num_experts=3, rank=RANK, alpha=RANK, router_factory=router
    ).apply({'params': fewer}, X, jnp.zeros((2, 3, OUT)))
    outputs, gates = run(params, scores, select, active=(0, 1, 2))
    assert not np.any(gates[..., 3])
    np.testing.assert_array_equal(outputs, small)


def test_experts_that_are_not_active_are_not_multiplied():
  def flops(scores, num_experts, active=None):
    module = module_of(scores, selection.Soft(), active, num_experts)
    x, y = (jnp.ones((4, 64, 256)) for _ in range(2))
    params = jax.eval_shape(module.init, jax.random.key(0), x, y)['params']
    compiled = jax.jit(module.apply).lower({'params': params}, x, y).compile()
    return compiled.cost_analysis()['flops']

  for scores in (
      bank.ArrowScores(), bank.SpectRScores(), token_scores.TokenScores()
  ):
    # A learned router has a column for each of them.
    assert flops(scores, 16, (0, 3)) < 0.3 * flops(scores, 16)


def test_active_experts_have_the_scale_of_all():
  params = experts()
  for stabilized, scale in ((False, 2.0), (True, 2.0 * RANK**0.5)):
    found = bank.Bank(
        num_experts=EXPERTS, rank=RANK, alpha=2.0 * RANK, active=(0, 2),
        rank_stabilized=stabilized,
        router_factory=functools.partial(
            routing.Router, scores=bank.NoScores()
        ),
    ).apply({'params': params}, X, jnp.zeros((2, 3, OUT)))
    mean = updates(params)[[0, 2]].mean(0)
    np.testing.assert_allclose(
        found, scale * np.einsum('bli,io->blo', X, mean), atol=1e-5
    )


def test_weight_1_is_no_fault_where_no_router_learns():
  one = selection.TopK(k=1, normalize=True)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    _, gates = run(experts(), bank.ArrowScores(), one)
  assert set(np.unique(gates)) == {0.0, 1.0}
  router = {'router': {'kernel': jnp.ones((IN, EXPERTS))}}
  with pytest.warns(UserWarning, match='no gradient'):
    run({**experts(), **router}, token_scores.TokenScores(), one)


def test_numbers_of_no_expert_are_refused():
  for active in ((), (4,), (-1,), (1, 1)):
    with refusals.refused('ACTIVE_EXPERTS'):
      run(experts(), bank.NoScores(), selection.Soft(), active)


@pytest.mark.slow
def test_a_gate_begins_at_one_half():
  params = {k: v[:1] for k, v in experts().items()}
  module = bank.GatedExpert(rank=RANK, alpha=RANK)
  shapes = jax.eval_shape(module.init, jax.random.key(0), X, X[..., :OUT])
  assert set(shapes['params']) == {'lora_a', 'lora_b', 'gate'}
  outputs = jnp.ones((2, 3, OUT))
  for gate in (jnp.zeros(IN), jnp.arange(IN) / IN):
    found = module.apply({'params': {**params, 'gate': gate}}, X, outputs)
    weight = 1 / (1 + np.exp(-np.asarray(X @ gate)))[..., None]
    want = 1 + weight * np.einsum('bli,io->blo', X, updates(params)[0])
    np.testing.assert_allclose(found, want, atol=1e-5)
  with refusals.refused('NUM_EXPERTS'):
    bank.GatedExpert(num_experts=2).init(jax.random.key(0), X, outputs)
