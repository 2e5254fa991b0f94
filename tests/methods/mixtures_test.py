# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Methods of 2024 to 2026 at one layer, against their formulas in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import router_losses
from moe_peft.core import routing
from moe_peft.core import selection
from moe_peft.methods import comol
from moe_peft.methods import dynmole
from moe_peft.methods import flylora
from moe_peft.methods import ldmole
from moe_peft.methods import lora
from moe_peft.methods import mlae
from moe_peft.methods import modula
from moe_peft.methods import molora
from moe_peft.methods import mor_lora
from moe_peft.methods import riemannian
from moe_peft.methods import smora
from moe_peft.methods import ttlora
from tests.methods import formulas_test as formulas
from tests.refusals import refused

B, L, IN, OUT, E, R = 2, 5, 6, 8, 3, 2
SITE, X, Y = formulas.SITE, formulas.X, formulas.Y
apply, close, filled = formulas.apply, formulas.close, formulas.filled
softmax = formulas.softmax


def test_rslora_scales_by_the_root_of_the_rank():
  make = functools.partial(lora.LoRA, site=SITE, rank=4, alpha=6.0)
  params = filled(make())
  want = Y + 3.0 * X @ params['lora_a'][0] @ params['lora_b'][0]
  close(apply(make(rank_stabilized=True), params), want)


@pytest.mark.parametrize('reads_inputs', [False, True])
def test_comol(reads_inputs):
  adapter = comol.CoMoL(
      site=SITE, num_experts=E, rank=R, alpha=5.0, reads_inputs=reads_inputs
  )
  params = filled(adapter)
  hidden = X @ params['lora_a'][0]
  weights = softmax(
      (X if reads_inputs else hidden) @ params['router']['kernel']
  )
  merged = np.einsum('ble,ers->blrs', weights, params['core'])
  mixed = np.einsum('blr,blrs->bls', hidden, merged)
  close(apply(adapter, params), Y + 2.5 * mixed @ params['lora_b'][0])


def test_comol_has_the_published_parameters():
  # Qwen3-8B, 36 layers, rank 16, 4 experts: q, k, v, o and down.
  shapes = ((4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096),
            (12288, 4096))
  total = 36 * sum(
      count(comol.CoMoL(num_experts=4, rank=16), i, o) for i, o in shapes
  )
  assert round(total / 1e6, 2) == 24.97
  total = 36 * sum(
      count(comol.CoMoL(num_experts=4, rank=8, reads_inputs=True), i, o)
      for i, o in shapes
  )
  assert round(total / 1e6, 2) == 16.56


def count(adapter, in_features, out_features):
  x, y = jnp.ones((1, 1, in_features)), jnp.ones((1, 1, out_features))
  params = jax.eval_shape(adapter.init, jax.random.key(0), x, y)['params']
  return sum(x.size for x in jax.tree.leaves(params))


def test_modula_adds_the_universal_expert():
  options = dict(site=SITE, num_experts=E, rank=R, alpha=5.0)
  adapter = modula.MoDULARes(**options)
  params = filled(adapter)
  shared = X @ params['shared_lora_a'][0] @ params['shared_lora_b'][0]
  routed = {k: v for k, v in params.items() if 'shared' not in k}
  want = apply(molora.MoLoRA(**options), routed) + 2.5 * shared
  close(apply(adapter, params), want)


@pytest.mark.parametrize('magnitude', [False, True])
def test_flylora(magnitude):
  select = flylora.Largest(k=2, magnitude=magnitude)
  adapter = flylora.FlyLoRA(
      site=SITE, num_experts=E, alpha=5.0,
      router_factory=functools.partial(flylora.FlyLoRARouter, select=select),
  )
  params = filled(adapter)
  hidden = X @ params['sparse_a'][..., 0].T
  score = hidden + params['router']['bias']
  score = np.abs(score) if magnitude else score
  mask = score >= np.sort(score, -1)[..., -2:-1]
  want = Y + 5.0 / E * (hidden * mask) @ params['lora_b'][:, 0]
  close(apply(adapter, params), want)


@pytest.mark.slow
def test_flylora_is_sparse_and_only_lora_b_has_gradients():
  adapter = flylora.FlyLoRA(num_experts=8, router_factory=functools.partial(
      flylora.FlyLoRARouter, select=flylora.Largest(k=2)
  ))
  x, y = jnp.ones((1, 2, 64)), jnp.ones((1, 2, 4))
  params = adapter.init(jax.random.key(0), x, y)['params']
  assert np.all((np.asarray(params['sparse_a']) != 0).sum(1) == 64 * 2 // 8)
  grads = jax.grad(
      lambda p: jnp.sum(jnp.sin(adapter.apply({'params': p}, x, y)))
  )(params)
  assert not np.any(grads['sparse_a'])
  assert np.any(grads['lora_b'])


def test_flylora_has_the_published_parameters():
  # Llama-3.1-8B: the outputs of seven projections in 32 layers, 32 ranks.
  outputs = (4096, 1024, 1024, 4096, 14336, 14336, 4096)
  params = [
      jax.eval_shape(
          flylora.FlyLoRA().init, jax.random.key(0), jnp.ones((1, 1, 8)),
          jnp.ones((1, 1, o)),
      )['params']['lora_b'].size
      for o in outputs
  ]
  assert 32 * sum(params) == 44_040_192


def test_mlae_is_a_lora_with_coefficients_and_drops_ranks():
  adapter = mlae.MLAE(site=SITE, rank=4, alpha=3.0, expert_dropout=0.5)
  fresh = adapter.init(jax.random.key(0), X, Y)['params']
  close(fresh['coefficient'], np.full(4, 3.0))
  params = filled(adapter)
  a, b = params['lora_a'][0], params['lora_b'][0]
  parts = np.einsum(
      'blr,r,ro->rblo', X @ a, params['coefficient'], b
  )
  close(apply(adapter, params), Y + parts.sum(0))
  update = apply(adapter, params, training=True) - Y
  subsets = [
      [2.0 * (index >> rank & 1) for rank in range(4)] for index in range(16)
  ]
  sums = np.einsum('sr,rblo->sblo', np.array(subsets), parts)
  assert min(np.abs(sums - update).max(axis=(1, 2, 3))) < 1e-3


def test_ttlora_is_a_lora_of_products_of_cores():
  adapter = ttlora.TTLoRA(
      site=SITE, rank=R, alpha=5.0, input_factors=(3, 2),
      output_factors=(2, 4),
  )
  assert not np.any(adapter.init(
      jax.random.key(0), X, Y)['params']['output_core_1'])
  cores = {k: v[0] for k, v in filled(adapter).items()}
  # The first factor of the inputs is their fastest axis; of the outputs the
  # slowest.
  x = np.asarray(X).reshape(B, L, 2, 3)
  want = np.einsum(
      'blnm,amr,rns,spt,tqc->blpq', x, cores['input_core_0'],
      cores['input_core_1'], cores['output_core_0'], cores['output_core_1'],
  ).reshape(B, L, OUT)
  close(apply(adapter, filled(adapter)), Y + 5.0 * want)


def test_ttlora_has_the_published_parameters():
  # Queries and values of the 16 layers of LLaMA-3.2-1B.
  query = ttlora.TTLoRA(
      input_factors=(16, 8, 4, 4), output_factors=(4, 4, 8, 16)
  )
  value = ttlora.TTLoRA(
      input_factors=(16, 16, 4, 2), output_factors=(2, 16, 16)
  )
  total = 16 * (count(query, 2048, 2048) + count(value, 2048, 512))
  assert total == 33_920
  with refused('ttlora.TTLoRA.input_factors'):
    count(query, 1024, 2048)


@pytest.mark.parametrize('number', [1, 2, 7, 48, 576, 2048, 14336, 37 * 48])
def test_ttlora_finds_factors(number):
  factors = ttlora._factors(None, number, '')
  assert np.prod(factors) == number
  assert all(factor <= 16 or factor == 37 for factor in factors)


def simplex(u, value):
  """Sparsegen by sorting, as in the paper."""
  ordered = np.sort(u)[::-1]
  sums = np.cumsum(ordered)
  n = max(
      j for j in range(1, len(u) + 1)
      if 1 - value + j * ordered[j - 1] > sums[j - 1]
  )
  threshold = (sums[n - 1] - 1 + value) / n
  return np.maximum(u - threshold, 0) / (1 - value)


@pytest.mark.slow
def test_sparsegen():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(40, 6)).astype(np.float32)
  values = rng.uniform(-3, 0.95, (40, 1)).astype(np.float32)
  logits[:5, 1] = logits[:5, 0]
  got = ldmole.sparsegen(logits, values)
  want = [simplex(u, v[0]) for u, v in zip(logits, values, strict=True)]
  np.testing.assert_allclose(got, want, atol=2e-5)
  np.testing.assert_allclose(got.sum(-1), 1.0, atol=1e-5)
  # Its gradients on the experts that are used; 0 for others.
  jacobian = jax.vmap(jax.jacobian(ldmole.sparsegen))(logits, values)
  slope = jax.vmap(jax.jacobian(ldmole.sparsegen, 1))(logits, values)
  for p, d, s, (v,) in zip(got, jacobian, slope, values, strict=True):
    used = np.asarray(p > 0)
    n, pairs = used.sum(), used[:, None] & used
    want = np.where(pairs, np.eye(6) - 1 / n, 0.0) / (1 - v)
    np.testing.assert_allclose(d, want, rtol=1e-4, atol=1e-4)
    want = np.where(used, p - 1 / n, 0.0) / (1 - v)
    np.testing.assert_allclose(s[:, 0], want, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_ldmole():
  adapter = ldmole.LDMoLE(
      site=SITE, num_experts=E, rank=R, alpha=5.0,
      router_factory=functools.partial(
          ldmole.LDMoLERouter, scores=ldmole.LambdaScores(hidden=4)
      ),
  )
  params = filled(adapter)
  router = params['router']
  inner = np.maximum(X @ router['lambda_kernel'] + router['lambda_bias'], 0)
  value = inner @ router['lambda_out'] + router['lambda_offset']
  value = 0.99 - np.log1p(np.exp(-value))
  weights = [
      [simplex(u, v[0]) for u, v in zip(*row, strict=True)]
      for row in zip(X @ router['kernel'], value, strict=True)
  ]
  want = formulas.lora_mixture(np.array(weights), params, 2.5)
  close(apply(adapter, params), want)
  assert adapter.init(
      jax.random.key(0), X, Y)['params']['router']['lambda_offset'] == -2.5


def test_ldmole_has_the_experts_and_routers_of_the_paper():
  # Llama-3.2-3B; the networks of lambda are ours, one for each site.
  widths = (3072, 3072, 3072, 3072, 3072, 3072, 8192)
  outputs = (3072, 1024, 1024, 3072, 8192, 8192, 3072)
  adapter = ldmole.LDMoLE(router_factory=routing.Router)
  total = 28 * sum(
      count(adapter, i, o) for i, o in zip(widths, outputs, strict=True)
  )
  assert total == 97_255_424 + 5_963_776


def decide(select, logits):
  router = routing.Router(logits.shape[-1], select=select)
  kernel = {'params': {'kernel': jnp.eye(logits.shape[-1])}}
  return router.apply(kernel, jnp.asarray(logits, jnp.float32))


def test_dynmole_by_hand():
  logits = np.log(np.array([[
      [0.97, 0.01, 0.01, 0.01], [0.5, 0.3, 0.1, 0.1], [0.25] * 4,
      [0.6, 0.2, 0.1, 0.1],
  ]]))
  select = dynmole.Mass(k=1, entropy_threshold=1.1)
  got = decide(select, logits).combine_weights
  entropies = router_losses.tsallis_entropy(jnp.exp(logits), 1.1)
  np.testing.assert_array_equal(
      np.asarray(entropies > 1.1), [[False, False, True, False]]
  )
  want = [[[1, 0, 0, 0], [5 / 8, 3 / 8, 0, 0], [0.25] * 4, [0.75, 0.25, 0, 0]]]
  np.testing.assert_allclose(got, want, atol=1e-5)
  at_least = decide(dynmole.Mass(k=2, entropy_threshold=1.1), logits)
  assert np.all((at_least.combine_weights > 0).sum(-1) >= 2)


def test_loss_free_balance_chooses_by_the_bias_and_weighs_without_it():
  logits = np.array([[[2.0, 1.0, -1.0], [0.0, 3.0, 0.5]]], np.float32)
  select = smora.BiasedTopK(k=1, softmax=True, bias_in_gate=False,
                            normalize=False)
  router = routing.Router(3, select=select)
  bias = jnp.array([0.0, 0.0, 0.75])
  run = lambda bias: router.apply(
      {'params': {'kernel': jnp.eye(3), 'bias': bias}}, logits
  ).combine_weights
  probs = softmax(logits)
  close(run(bias), np.where(np.arange(3) == [[[2], [1]]], probs, 0.0))
  grad = jax.grad(lambda bias: jnp.sum(run(bias)))(bias)
  np.testing.assert_array_equal(grad, [-1, 1, 1])


@pytest.mark.parametrize('k', [1, 2])
def test_hard_weights_have_the_gradients_of_probabilities(k):
  logits = np.array([[[2.0, 1.0, -1.0], [0.0, 3.0, 0.5]]], np.float32)
  weigh = lambda select: lambda x: decide(select, x).combine_weights
  gates, pull = jax.vjp(weigh(mor_lora.StraightThrough(k=k)), logits)
  soft, pull_soft = jax.vjp(weigh(selection.TopK(k=k)), logits)
  np.testing.assert_allclose(gates, (np.asarray(soft) > 0) / k)
  np.testing.assert_allclose(
      pull(gates * 2.0)[0], pull_soft(gates * 2.0 / k)[0], atol=1e-6
  )


def test_hard_weights_go_to_no_expert_that_is_not_there():
  router = routing.Router(3, select=mor_lora.StraightThrough(k=2))
  found = router.apply(
      {'params': {'kernel': jnp.eye(3)}}, jnp.ones((1, 1, 3)),
      active=jnp.array([False, True, False]),
  )
  np.testing.assert_array_equal(found.combine_weights, [[[0, 0.5, 0]]])


@pytest.mark.slow
def test_riemannian_weighs_gradients_by_roots_of_gates():
  top2 = functools.partial(
      routing.Router, select=selection.TopK(k=2, normalize=True)
  )
  options = dict(
      site=SITE, num_experts=E, rank=R, alpha=5.0, router_factory=top2
  )
  params = filled(riemannian.Riemannian(**options))
  run = lambda cls: lambda params: jnp.sum(
      jnp.sin(apply(cls(**options), params))
  )
  value, got = jax.value_and_grad(run(riemannian.Riemannian))(params)
  plain, want = jax.value_and_grad(run(molora.MoLoRA))(params)
  np.testing.assert_allclose(value, plain, rtol=1e-4)
  close(got['router']['kernel'], want['router']['kernel'])

  weights = formulas.top_2(softmax(X @ params['router']['kernel']))
  slope = np.cos(apply(molora.MoLoRA(**options), params)) * 2.5
  hidden = np.einsum('bli,eir->bler', X, params['lora_a'])
  root = np.sqrt(weights)
  close(got['lora_b'], np.einsum('bler,ble,blo->ero', hidden, root, slope))
  back = np.einsum('blo,ero,ble->bler', slope, params['lora_b'], root)
  close(got['lora_a'], np.einsum('bli,bler->eir', X, back))
