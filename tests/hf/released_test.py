# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Plain methods against PEFT's, on the same weights."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.methods import dora
from moe_peft.methods import lora
from moe_peft.methods import spectral
from tests.methods import formulas_test as formulas

pytestmark = [pytest.mark.hf, pytest.mark.slow]
IN, OUT, RANK, ALPHA = 6, 8, 2, 5.0


@pytest.fixture
def released(hf):
  """PEFT's layer with options, and its base's kernel before it was made."""
  from peft.tuners.lora import LoraConfig
  from peft.tuners.lora import layer as peft_layer

  def make(**options):
    hf.manual_seed(0)
    base = hf.nn.Linear(IN, OUT)
    kernel = base.weight.detach().numpy().T.copy()
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=['x'], **options
    )
    layer = peft_layer.Linear(
        base, 'default', config=config, r=RANK, lora_alpha=ALPHA
    )
    return layer, kernel

  return make


def pair(layer):
  """Its arrays in our axes."""
  return {
      f'lora_{half}': getattr(layer, f'lora_{half.upper()}')['default']
      .weight.detach().numpy().T[None]
      for half in 'ab'
  }


def run(hf, layer):
  return layer(hf.tensor(np.asarray(formulas.X))).detach().numpy()


@pytest.mark.parametrize(
    ('cls', 'name'),
    [(spectral.PiSSA, 'pissa'), (spectral.OLoRA, 'olora'),
     (spectral.MiCA, 'mica')],
)
def test_what_it_begins_with(released, hf, cls, name):
  layer, kernel = released(init_lora_weights=name)
  values = cls(rank=RANK, alpha=ALPHA).from_kernel(kernel)
  theirs = pair(layer)
  if name == 'mica':
    ours = values['frozen_b'][0]
    assert not np.any(theirs['lora_a'])
    theirs = theirs['lora_b'][0]
    # Up to the sign of each singular vector.
    formulas.close(np.abs(np.sum(ours * theirs, -1)), np.ones(RANK))
    return
  # As products, since singular vectors have signs of their own.
  formulas.close(
      values['lora_a'][0] @ values['lora_b'][0],
      theirs['lora_a'][0] @ theirs['lora_b'][0],
  )
  # And it begins at the base.
  bias = layer.base_layer.bias.detach().numpy()
  formulas.close(run(hf, layer), formulas.X @ kernel + bias)


def test_rslora(released, hf):
  layer, kernel = released(use_rslora=True)
  layer.lora_B['default'].weight.data.normal_()
  bias = layer.base_layer.bias.detach().numpy()
  adapter = lora.LoRA(
      site=formulas.SITE, rank=RANK, alpha=ALPHA, rank_stabilized=True
  )
  got = adapter.apply(
      {'params': pair(layer)}, formulas.X, formulas.X @ kernel + bias
  )
  formulas.close(got, run(hf, layer))


def test_dora(released, hf):
  layer, kernel = released(use_dora=True)
  layer.lora_B['default'].weight.data.normal_()
  bias = layer.base_layer.bias.detach().numpy()
  length = layer.lora_magnitude_vector['default'].weight
  factors = np.linspace(0.5, 1.5, OUT, dtype=np.float32)
  length.data *= hf.tensor(factors)
  site = dataclasses.replace(
      formulas.SITE,
      frozen=lambda: {'kernel': jnp.asarray(kernel), 'bias': bias},
  )
  adapter = dora.DoRA(site=site, rank=RANK, alpha=ALPHA)
  got = adapter.apply(
      {'params': {**pair(layer), 'magnitude': factors}},
      formulas.X, formulas.X @ kernel + bias,
  )
  formulas.close(got, run(hf, layer))
