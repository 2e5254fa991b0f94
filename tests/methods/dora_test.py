# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""DoRA at one layer, and on layers whose kernels and biases it reads."""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moe_peft.core import inject
from moe_peft.core import tokens as tokens_lib
from moe_peft.methods import dora
from tests.methods import formulas_test as formulas
from tests.refusals import refused

KERNEL, BIAS = formulas.normal(7, 6, 8), formulas.normal(8, 8)
SITE = dataclasses.replace(
    formulas.SITE, frozen=lambda: {'kernel': KERNEL, 'bias': BIAS}
)
Y = formulas.X @ KERNEL + BIAS


def test_dora():
  adapter = dora.DoRA(site=SITE, rank=2, alpha=5.0)
  params = formulas.filled(adapter, formulas.X, Y)
  v = KERNEL + 2.5 * params['lora_a'][0] @ params['lora_b'][0]
  length = params['magnitude'] * np.linalg.norm(KERNEL, axis=0)
  want = formulas.X @ v * (length / np.linalg.norm(v, axis=0)) + BIAS
  formulas.close(formulas.apply(adapter, params, formulas.X, Y), want)


def test_the_norm_is_a_constant_to_the_gradient():
  a, b = formulas.normal(1, 6, 2), formulas.normal(2, 2, 8)
  factor = lambda a, b, m: dora.column_factor(KERNEL, a, b, m).sum()
  grads = jax.grad(factor, argnums=(0, 1, 2))(a, b, jnp.ones(8))
  assert not np.any(grads[0]) and not np.any(grads[1])
  assert np.all(grads[2] > 0)


def test_it_reads_the_layer_and_begins_at_it_to_the_last_bit():
  module = inject.AdaptedModule(
      nn.Dense(8, name='dense', bias_init=nn.initializers.normal()),
      (inject.OutputRule('.*', dora.DoRA),),
      describe_tokens=tokens_lib.all_real,
  )
  variables = module.init(jax.random.key(0), formulas.X)
  got = module.apply(variables, formulas.X)
  np.testing.assert_array_equal(
      got, module.apply(variables, formulas.X, adapters=False)
  )
  assert variables['params']['adapter']['magnitude'].shape == (8,)


def test_dora_has_the_published_parameters():
  # PEFT's figure for rank 32 on q and v of Llama-3.2-3B.
  total = 0
  for out in (3072, 1024):
    site = dataclasses.replace(
        formulas.SITE, frozen=lambda out=out: {'kernel': jnp.ones((3072, out))}
    )
    shapes = jax.eval_shape(
        dora.DoRA(site=site, rank=32).init, jax.random.key(0),
        jnp.ones((1, 1, 3072)), jnp.ones((1, 1, out)),
    )
    total += sum(x.size for x in jax.tree.leaves(shapes['params']))
  assert 28 * total == 9_289_728


def test_a_layer_without_a_kernel_and_several_experts_are_refused():
  with refused('SITES'):
    dora.DoRA(site=formulas.SITE).init(jax.random.key(0), formulas.X, Y)
  with refused('NUM_EXPERTS', 'DoRA'):
    dora.DoRA(site=SITE, num_experts=2).init(jax.random.key(0), formulas.X, Y)
