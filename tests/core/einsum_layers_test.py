# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of adapters on einsum layers: our own, Flax's, and Gemma's."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.core import einsum_layers
from moe_peft.core import inject
from moe_peft.core import trainable
from moe_peft.methods import ia3
from moe_peft.methods import lora
from moe_peft.methods import molora


class Einsum(nn.Module):
  """A layer that gets its equation with the call, as Gemma's do."""

  shape: tuple[int, ...]

  @nn.compact
  def __call__(self, equation, x):
    w = self.param('w', nn.initializers.normal(0.5), self.shape)
    return jnp.einsum(equation, x, w)


CASES = {
    'q': ('BTD,NDH->BTNH', (2, 5, 6), (3, 6, 4), 'BTD->BTD', 'BTNH->BTNH', 3),
    'kv': ('BSD,CKDH->CBSKH', (2, 5, 6), (2, 3, 6, 4), None, 'CBSKH->BSCKH',
           None),
    'out': ('BTNH,NHD->BTD', (2, 5, 3, 4), (3, 4, 6), None, 'BTD->BTD', None),
    'dots': ('...F,NHF->...NH', (2, 5, 6), (2, 4, 6), None, 'BTNH->BTNH', 2),
}


@pytest.mark.parametrize('name', CASES)
def test_tokens_come_first_and_features_flat(name):
  equation, inputs, kernel, _, order, heads = CASES[name]
  x = jax.random.normal(jax.random.key(0), inputs)
  w = jax.random.normal(jax.random.key(1), kernel)
  outputs = jnp.einsum(equation, x, w)
  run = lambda equation, x: jnp.einsum(equation, x, w)
  layer = einsum_layers.find(Einsum(kernel), run, (equation, x), {}, {})
  np.testing.assert_array_equal(layer.flat_inputs(), x.reshape(2, 5, -1))
  flat = layer.flat_outputs(outputs)
  np.testing.assert_array_equal(
      flat, jnp.einsum(order, outputs).reshape(2, 5, -1)
  )
  np.testing.assert_array_equal(layer.restored(flat, outputs), outputs)
  assert layer.num_heads(outputs) == heads
  np.testing.assert_array_equal(layer.run(), outputs)
  np.testing.assert_allclose(
      layer.run(2 * layer.flat_inputs()), 2 * outputs, rtol=1e-6
  )


@pytest.mark.parametrize('kind', ['first', 'attribute', 'call'])
def test_lora_on_an_einsum_is_the_closed_form(kind):
  """outputs + alpha / rank * x A B, B's columns in the order of the heads."""
  rule = inject.OutputRule(
      'layer',
      lambda **kwargs: lora.LoRA(rank=2, alpha=6.0, **kwargs),
  )

  class Model(nn.Module):

    @nn.compact
    def __call__(self, x):
      equation, shape = 'BTD,NDH->BTNH', (3, 6, 4)
      if kind == 'attribute':
        return nn.Einsum(shape, equation, use_bias=False, name='layer')(x)
      if kind == 'call':
        layer = nn.Einsum(shape, use_bias=False, name='layer')
        return layer(x, einsum_str=equation)
      return Einsum(shape, name='layer')(equation, x)

  x = jax.random.normal(jax.random.key(0), (2, 5, 6))
  adapted = inject.AdaptedModule(Model(), (rule,))
  params = adapted.init(jax.random.key(1), x)['params']
  base = Model().apply({'params': params}, x)
  np.testing.assert_array_equal(adapted.apply({'params': params}, x), base)

  flat = trainable.flatten(params)
  b = jax.random.normal(jax.random.key(2), flat['layer/adapter/lora_b'].shape)
  params['layer']['adapter']['lora_b'] = b
  a = flat['layer/adapter/lora_a'].reshape(6, 2)
  expected = base + 3.0 * (x @ a @ b.reshape(2, 12)).reshape(2, 5, 3, 4)
  np.testing.assert_allclose(
      adapted.apply({'params': params}, x), expected, rtol=1e-5, atol=1e-5
  )


def test_an_input_rule_scales_what_an_einsum_reads():
  class Model(nn.Module):

    @nn.compact
    def __call__(self, x):
      return Einsum((3, 6, 4), name='layer')('BTD,NDH->BTNH', x)

  x = jax.random.normal(jax.random.key(0), (2, 5, 6))
  model = inject.AdaptedModule(Model(), (inject.InputRule('layer', ia3.IA3),))
  params = model.init(jax.random.key(0), x)['params']
  scaling = jnp.arange(6.0)
  params['layer']['adapter']['scaling'] = scaling[None]
  np.testing.assert_allclose(
      model.apply({'params': params}, x),
      Model().apply({'params': params}, x * scaling),
      rtol=1e-5,
  )


def tiny_gemma():
  """A model that is not ours, `gemma` 3, tiny and random: 32 ids, 2 layers."""
  gm = pytest.importorskip(
      'gemma.gm', reason='pip install gemma==3.3.0 for this test'
  )
  config = gm.nn.config.TransformerConfig(
      num_embed=32,
      embed_dim=16,
      hidden_dim=32,
      num_heads=4,
      head_dim=8,
      num_kv_heads=2,
      final_logit_softcap=None,
      use_post_attn_norm=True,
      use_post_ffw_norm=True,
      attention_types=gm.nn.config.make_attention_layers_types(
          (gm.nn.AttentionType.GLOBAL,), num_layers=2
      ),
      query_pre_attn_norm=(
          gm.nn.config.QueryPreAttentionNormalisation.BY_ONE_OVER_SQRT_HEAD_DIM
      ),
  )
  return gm.nn.Transformer(config=config, dtype=jnp.float32)


@pytest.mark.slow
def test_gemma_takes_experts_without_a_change():
  gemma = tiny_gemma()
  adapted = inject.AdaptedModule(
      gemma,
      (
          inject.OutputRule(
              r'.*/attn/(q_einsum|kv_einsum|attn_vec_einsum)',
              lambda **kwargs: molora.MoLoRA(num_experts=3, rank=2, **kwargs),
          ),
      ),
  )
  tokens = jnp.asarray(np.random.default_rng(0).integers(3, 32, (2, 7)))
  base = gemma.init(jax.random.key(0), tokens)['params']
  params = adapted.init(jax.random.key(1), tokens)['params']
  flat, of_base = trainable.flatten(params), trainable.flatten(base)
  experts = {k: v for k, v in flat.items() if trainable.is_adapter(k)}
  assert set(flat) - set(experts) == set(of_base)  # Not a path has moved.
  assert len(experts) == 2 * 3 * 3  # lora_a, lora_b, router: three sites.

  @jax.jit
  def logits(experts):
    merged = trainable.unflatten({**of_base, **experts})
    return adapted.apply({'params': merged}, tokens).logits

  expected = gemma.apply({'params': base}, tokens).logits
  np.testing.assert_allclose(logits(experts), expected, rtol=1e-5, atol=1e-5)
  # After a step along the gradient the next token is likelier.
  def loss(experts):
    log_probs = jax.nn.log_softmax(logits(experts)[:, :-1])
    return -jnp.take_along_axis(log_probs, tokens[:, 1:, None], -1).mean()

  value, grads = jax.value_and_grad(loss)(experts)
  assert all(jnp.isfinite(g).all() for g in grads.values())
  moved = jax.tree.map(lambda x, g: x - 0.1 * g, experts, grads)
  assert loss(moved) < value
