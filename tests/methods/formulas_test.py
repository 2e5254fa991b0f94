# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Each method at one layer, against its formula written out in NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import routing
from moe_peft.core import scores
from moe_peft.core import sites
from moe_peft.core import tokens as tokens_lib
from moe_peft.methods import adamix
from moe_peft.methods import bottleneck
from moe_peft.methods import flylora
from moe_peft.methods import hydralora
from moe_peft.methods import ia3
from moe_peft.methods import lora
from moe_peft.methods import mixlora
from moe_peft.methods import mode
from moe_peft.methods import moelora
from moe_peft.methods import moelora_id
from moe_peft.methods import mola
from moe_peft.methods import molora
from moe_peft.methods import mosld
from moe_peft.methods import mov
from moe_peft.methods import sira
from moe_peft.methods import smear
from moe_peft.methods import smoe_dropout
from moe_peft.methods import smora
from moe_peft.methods import spectral
from tests.refusals import refused

B, L, IN, OUT, E, R = 2, 5, 6, 8, 3, 2
SITE = sites.Site(kernel_axis_names=('embed', 'mlp'), causal=False)
HEADS = sites.Site(kernel_axis_names=('embed', 'joined_kv'), num_heads=2)
PER_HEAD = functools.partial(
    routing.Router, scores=scores.HeadScores()
)


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


X, Y = normal(0, B, L, IN), normal(1, B, L, OUT)


def filled(adapter, *args):
  """Parameters of normal random numbers, as NumPy arrays."""
  args = args or (X, Y)
  shapes = jax.eval_shape(adapter.init, jax.random.key(0), *args)['params']
  leaves, tree = jax.tree.flatten(shapes)
  return tree.unflatten(
      [np.array(normal(10 + i, *x.shape)) for i, x in enumerate(leaves)]
  )


def apply(adapter, params, *args, training=False, **kwargs):
  rngs = {'dropout': jax.random.key(5)} if training else {}
  args = args or (X, Y)
  return adapter.apply({'params': params}, *args, rngs=rngs, **kwargs)


def softmax(x):
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def close(got, want):
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def top_2(weights):
  kept = weights >= np.sort(weights, -1)[..., -2:-1]
  weights = np.where(kept, weights, 0)
  return weights / weights.sum(-1, keepdims=True)


def lora_mixture(weights, params, scale):
  """The published order: outputs of all experts first, then the weights."""
  a, b = params['lora_a'], params['lora_b']
  a = np.broadcast_to(a, (len(b), *a.shape[1:]))
  outputs = np.einsum('bli,eir,ero->bleo', X, a, b)
  return Y + scale * np.einsum('ble,bleo->blo', weights, outputs)


def test_molora():
  adapter = molora.MoLoRA(site=SITE, num_experts=E, rank=R, alpha=5.0)
  params = filled(adapter)
  weights = softmax(X @ params['router']['kernel'])
  close(apply(adapter, params), lora_mixture(weights, params, 5.0 / R))


def test_molora_with_one_expert_is_lora():
  one = molora.MoLoRA(site=SITE, num_experts=1, rank=R, alpha=5.0)
  plain = lora.LoRA(site=SITE, rank=R, alpha=5.0)
  params = filled(one)
  assert set(params) == {'lora_a', 'lora_b'}
  np.testing.assert_array_equal(apply(one, params), apply(plain, params))
  want = Y + 5.0 / R * X @ params['lora_a'][0] @ params['lora_b'][0]
  close(apply(plain, params), want)


def test_equal_gates_are_the_mean_of_the_experts():
  adapter = molora.MoLoRA(site=SITE, num_experts=E, rank=R)
  params = filled(adapter)
  params['router']['kernel'] *= 0
  plain = lora.LoRA(site=SITE, rank=R)
  singles = [
      apply(plain, {k: params[k][e : e + 1] for k in ('lora_a', 'lora_b')})
      for e in range(E)
  ]
  close(apply(adapter, params), np.mean(singles, axis=0))


@pytest.mark.parametrize('site', [SITE, HEADS], ids=['per token', 'per head'])
@pytest.mark.parametrize('residual', [True, False])
def test_mov(site, residual):
  adapter = mov.MoV(
      site=site, num_experts=E, router_factory=PER_HEAD, residual=residual
  )
  params = filled(adapter)
  heads = site.num_heads or 1
  y = np.asarray(Y).reshape(B, L, heads, -1)
  assert params['router']['kernel'].shape == (OUT // heads, E)
  weights = softmax(y @ params['router']['kernel'])
  vectors = params['scaling'].reshape(E, heads, -1)
  want = y * np.einsum('blhe,ehd->blhd', weights, vectors)
  close(apply(adapter, params), want.reshape(B, L, OUT))


def test_mov_with_one_expert_is_ia3():
  one = mov.MoV(site=HEADS, num_experts=1, router_factory=PER_HEAD)
  params = filled(one)
  np.testing.assert_array_equal(
      apply(one, params), apply(ia3.IA3(site=HEADS), params)
  )
  np.testing.assert_array_equal(apply(one, params), Y * params['scaling'][0])


def test_mov_equal_gates_are_the_mean():
  adapter = mov.MoV(site=HEADS, num_experts=E, router_factory=PER_HEAD)
  params = filled(adapter)
  params['router']['kernel'] *= 0
  close(apply(adapter, params), Y * params['scaling'].mean(0))


def test_mov_refuses_to_move_tokens():
  adapter = mov.MoV(site=SITE, num_experts=E, execution='einsum')
  with refused('adapter.MoeAdapter.execution', 'all_experts'):
    adapter.init(jax.random.key(0), X, Y)


@pytest.mark.parametrize(
    'method', [moelora.MoELoRA, mola.MoLA], ids=['moelora', 'mola']
)
def test_renormalised_top_2(method):
  adapter = method(site=SITE, num_experts=E, rank=R, alpha=5.0)
  params = filled(adapter)
  weights = top_2(softmax(X @ params['router']['kernel']))
  close(apply(adapter, params), lora_mixture(weights, params, 5.0 / R))


@pytest.mark.slow
def test_moelora_contrasts_the_experts_that_tokens_use():
  adapter = moelora.MoELoRA(site=SITE, num_experts=E, rank=R)
  params = filled(adapter)

  def loss(params):
    _, state = apply(adapter, params, mutable=['intermediates'])
    return state['intermediates']['contrastive_loss'][0].sum()

  value, grads = jax.value_and_grad(loss)(params)
  assert value > 0
  assert np.abs(grads['lora_a']).max() > 0 and np.abs(grads['lora_b']).max() > 0
  # While lora_b is zero the gradient is finite, and zero.
  params['lora_b'] *= 0
  value, grads = jax.value_and_grad(loss)(params)
  assert np.isfinite(value)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_hydralora():
  adapter = hydralora.HydraLoRA(site=SITE, num_experts=E, rank=R, alpha=5.0)
  params = filled(adapter)
  assert params['lora_a'].shape == (1, IN, R)
  weights = softmax(X @ params['router']['kernel'])
  close(apply(adapter, params), lora_mixture(weights, params, 5.0 / R))


def test_mosld_drops_weights_of_lora_a_only_while_training():
  adapter = mosld.MoSLD(
      site=SITE, num_experts=E, rank=R, alpha=5.0, weight_dropout=0.5
  )
  params = filled(adapter)
  weights = top_2(softmax(X @ params['router']['kernel']))
  close(apply(adapter, params), lora_mixture(weights, params, 5.0 / R))
  trained = apply(adapter, params, training=True)
  candidates = []
  for bits in range(2 ** (IN * R)):
    mask = np.array([bits >> i & 1 for i in range(IN * R)]).reshape(1, IN, R)
    candidates.append(mask)
  masks = np.stack(candidates).astype(np.float32) * 2
  hidden = np.einsum('i,mir->mr', X[0, 0], (masks * params['lora_a'])[:, 0])
  mixed = np.einsum('e,ero->ro', weights[0, 0], params['lora_b'])
  wants = Y[0, 0] + 5.0 / R * hidden @ mixed
  # Some mask of zeros and twos explains what came out.
  assert np.abs(wants - trained[0, 0]).max(-1).min() < 1e-3


def test_smora():
  adapter = smora.SMoRA(
      site=SITE,
      num_experts=6,
      alpha=3.0,
      router_factory=functools.partial(
          smora.SMoRARouter, select=smora.BiasedTopK(k=2)
      ),
  )
  params = filled(adapter)
  scores = 1 / (1 + np.exp(-(X @ params['router']['kernel'])))
  scores = scores + params['router']['bias']
  kept = scores >= np.sort(scores, -1)[..., -2:-1]
  gates = np.where(kept & (scores > 0), scores, 0)
  # Released layer: gates normalized, times k, and scaled by alpha / k.
  weights = gates / (gates.sum(-1, keepdims=True) + 1e-9)
  close(apply(adapter, params), lora_mixture(weights, params, 3.0))


def test_mode():
  adapter = mode.MoDE(site=SITE, num_experts=E, rank=R, alpha=5.0)
  params = filled(adapter)
  logits = (X @ params['router']['kernel']).reshape(B, L, R, E)
  hidden = X @ params['lora_a'][0]
  update = np.einsum('blr,blre,ero->blo', hidden, softmax(logits),
                     params['lora_b'])
  close(apply(adapter, params), Y + 5.0 / R * update)


def test_mode_permuting_experts_changes_nothing():
  adapter = mode.MoDE(site=SITE, num_experts=E, rank=R)
  params = filled(adapter)
  want = apply(adapter, params)
  kernel = params['router']['kernel'].reshape(IN, R, E)[..., ::-1]
  params['router']['kernel'] = kernel.reshape(IN, R * E)
  params['lora_b'] = params['lora_b'][::-1]
  close(apply(adapter, params), want)


def relu(x):
  return np.maximum(x, 0)


def test_bottleneck():
  adapter = bottleneck.Bottleneck(site=SITE, num_experts=E, rank=R)
  params = filled(adapter)
  weights = softmax(Y @ params['router']['kernel'])
  want = np.asarray(Y).copy()
  for e in range(E):
    hidden = relu(Y @ params['down'][e] + params['down_bias'][e])
    expert = hidden @ params['up'][e] + params['up_bias'][e]
    want += weights[..., e : e + 1] * expert
  close(apply(adapter, params), want)


@pytest.mark.parametrize('method', [bottleneck.Bottleneck, smear.SMEAR])
def test_an_activation_that_does_not_exist(method):
  adapter = method(site=SITE, num_experts=E, activation='glue')
  with refused('bottleneck.Bottleneck.activation', "'glue'"):
    jax.eval_shape(adapter.init, jax.random.key(0), X, Y)


def test_smear_merges_parameters():
  adapter = smear.SMEAR(site=SITE, num_experts=E, rank=R)
  valid = np.arange(L) < np.array([[3], [5]])
  tokens = tokens_lib.Tokens(valid=jnp.asarray(valid))
  params = filled(adapter)
  router = params['router']
  norm = lambda x, axis: (x - x.mean(axis, keepdims=True)) / np.sqrt(
      x.var(axis, keepdims=True) + 1e-6
  )
  want = np.asarray(Y).copy()
  for b in range(B):
    mean = np.asarray(Y)[b, valid[b]].mean(0)
    columns = norm(router['kernel'], 0) * router['column_scale'][:, None]
    w = softmax(norm(mean, -1) * router['scale'] @ columns + router['bias'])
    merged = {
        k: np.tensordot(w, params[k], 1)
        for k in ('down', 'down_bias', 'up', 'up_bias')
    }
    hidden = relu(Y[b] @ merged['down'] + merged['down_bias'])
    want[b] += hidden @ merged['up'] + merged['up_bias']
  close(apply(adapter, params, X, Y, tokens), want)


@pytest.mark.slow
def test_smear_merges_for_each_packed_example():
  adapter = smear.SMEAR(site=SITE, num_experts=E, rank=R)
  params = filled(adapter)
  ids = jnp.broadcast_to(jnp.where(jnp.arange(L) < 2, 1, 2), (B, L))
  tokens = tokens_lib.Tokens(segment_ids=ids)
  want = [
      apply(adapter, params, X[:, part], Y[:, part], tokens_lib.Tokens())
      for part in (slice(2), slice(2, None))
  ]
  close(
      apply(adapter, params, X, Y, tokens), np.concatenate(want, axis=1)
  )


def test_adamix():
  adapter = adamix.AdaMix(site=SITE, num_experts=E, rank=R, alpha=5.0)
  params = filled(adapter)
  a, b = params['lora_a'], params['lora_b']
  assert b.shape[0] == 1
  update = lambda a: Y + 5.0 / R * X @ a @ b[0]
  close(apply(adapter, params), update(a.mean(0)))
  # While training one of them is drawn for the whole batch.
  drawn = set()
  for seed in range(12):
    got = adapter.apply(
        {'params': params}, X, Y, rngs={'dropout': jax.random.key(seed)}
    )
    differences = [np.abs(got - update(a[i])).max() for i in range(E)]
    assert min(differences) < 1e-3
    drawn.add(int(np.argmin(differences)))
  assert drawn == set(range(E))


def test_smoe_dropout_grows():
  router = functools.partial(
      smoe_dropout.SMoEDropoutRouter,
      select=smoe_dropout.GrowingTopK(k=6, first_k=2, growth_steps=100),
  )
  adapter = smoe_dropout.SMoEDropout(
      site=SITE, num_experts=6, rank=R, router_factory=router
  )
  params = filled(adapter)

  def used(step, training=True):
    tokens = tokens_lib.Tokens(step=step)
    _, state = apply(
        adapter, params, X, Y, tokens, training=training, mutable=['routing']
    )
    (weights,) = state['routing']['combine_weights']
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    return set(np.unique((weights > 0).sum(-1)))

  assert used(jnp.array(0)) == {2}
  assert used(jnp.array(50)) == {4}
  assert used(jnp.array(1000)) == {6}
  assert used(None, training=False) == {6}
  with refused('GROWTH_STEPS'):
    used(None)


def gelu(x):
  return np.asarray(jax.nn.gelu(jnp.asarray(x)))


@pytest.mark.parametrize('num_experts', [1, E])
def test_mixlora_is_a_mixture_of_blocks(num_experts):
  site = sites.Site(
      kernel_axis_names=('mlp', 'embed'), activations=('gelu', 'linear')
  )
  wi_0, wi_1, wo = normal(2, IN, OUT), normal(3, IN, OUT), normal(4, OUT, IN)
  adapter = mixlora.MixLoRA(
      site=site, num_experts=num_experts, rank=R, alpha=3.0
  )
  if num_experts > 1:
    assert adapter.router_factory is mixlora.MixLoRARouter
  siblings = {'wi_0': (X, X @ wi_0), 'wi_1': (X, X @ wi_1)}
  hidden = jax.nn.gelu(X @ wi_0) * (X @ wi_1)
  params = jax.tree.map(lambda x: 0.3 * x, filled(adapter, hidden, siblings))
  changed, update = apply(adapter, params, hidden, siblings)
  got = changed @ wo + update
  weights = np.ones((B, L, 1))
  if num_experts > 1:
    weights = top_2(softmax(X @ params['router']['kernel']))
  want = 0
  for e in range(num_experts):
    delta = lambda name, e=e: (
        1.5 * params[f'{name}_lora_a'][e] @ params[f'{name}_lora_b'][e]
    )
    block = gelu(X @ (wi_0 + delta('wi_0'))) * (X @ (wi_1 + delta('wi_1')))
    want = want + weights[..., e : e + 1] * (block @ (wo + delta('wo')))
  close(got, want)


def test_mixlora_off_its_block():
  adapter = mixlora.MixLoRA(site=SITE)
  with refused('SITES', 'wi_0'):
    adapter.init(jax.random.key(0), X, {})


@pytest.mark.slow
def test_by_depth():
  for layer, want in zip(range(8), (2, 2, 4, 4, 6, 6, 8, 8), strict=True):
    site = sites.Site(layer=layer, num_layers=8)
    assert mola.by_depth(site=site).num_experts == want
  scanned = mola.by_depth(site=sites.Site(num_layers=8))
  assert scanned.num_experts == 8
  assert scanned.experts_by_depth == (2, 4, 6, 8)
  with refused('EXPERTS_BY_DEPTH'):
    mola.by_depth(site=sites.Site(num_layers=3))
  with refused('mola.by_depth'):
    mola.by_depth(site=sites.Site())


@pytest.mark.parametrize(
    ('adapter', 'name'),
    [
        (flylora.FlyLoRA, 'FlyLoRA'),
        (spectral.GOAT, 'GOAT'),
        (moelora_id.MOELoRAOfIds, 'MOELoRAOfIds'),
        (sira.SiRA, 'capacity_factor'),
    ],
)
def test_what_counts_experts_has_one_number_inside_a_scan(adapter, name):
  site = sites.Site(num_layers=2)
  with refused('SCAN_LAYERS', name):
    mola.by_depth(adapter, (2, 8), site)
  assert mola.by_depth(adapter, (8, 8), site).num_experts == 8
  of_layer = dataclasses.replace(site, layer=0)
  assert mola.by_depth(adapter, (2, 8), of_layer).num_experts == 2
