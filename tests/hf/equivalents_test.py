# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Methods multiplied out to pairs: the outputs that MoLoRA computes of them."""

import functools

import jax
import numpy as np
import pytest

from moe_peft.core import routing
from moe_peft.hf import equivalents
from moe_peft.methods import comol
from moe_peft.methods import lora
from moe_peft.methods import mlae
from moe_peft.methods import molora
from moe_peft.methods import spectral
from moe_peft.methods import ttlora
from tests.methods import formulas_test as formulas

SOFT = {'num_experts': 3, 'router_factory': routing.Router}


@pytest.mark.parametrize(
    ('cls', 'options', 'rank', 'alpha'),
    [
        (comol.CoMoL, SOFT, 2, 5.0),
        (functools.partial(comol.CoMoL, reads_inputs=True), SOFT, 2, 5.0),
        (mlae.MLAE, {}, 2, 2.0),
        (ttlora.TTLoRA, SOFT, 2, 10.0),
    ],
    ids=['comol', 'comol of inputs', 'mlae', 'ttlora'],
)
def test_pairs_compute_what_the_method_does(cls, options, rank, alpha):
  adapter = cls(site=formulas.SITE, rank=rank, alpha=5.0, **options)
  params = formulas.filled(adapter)
  flat = {k: x for k, x in params.items() if k != 'router'}
  if 'router' in params:
    flat['router'] = params['router']['kernel']
  pairs = dict(equivalents.low_rank(adapter, flat, {}))
  plain = molora.MoLoRA if options else lora.LoRA
  plain = plain(site=formulas.SITE, rank=rank, alpha=alpha, **options)
  if 'router' in pairs:
    pairs['router'] = {'kernel': pairs['router']}
  if pairs['lora_a'].shape[0] < len(pairs['lora_b']):
    pairs['lora_a'] = np.repeat(pairs['lora_a'], 3, axis=0)
  formulas.close(
      formulas.apply(plain, pairs), formulas.apply(adapter, params)
  )


@pytest.mark.slow
def test_what_a_method_began_with_is_a_pair_with_a_minus():
  adapter = spectral.GOAT(num_experts=2, rank=2)
  arrays = {
      name: np.asarray(jax.random.normal(jax.random.key(i), shape))
      for i, (name, shape) in enumerate({
          'lora_a': (2, 6, 2), 'lora_b': (2, 2, 8),
          'frozen_a': (2, 6, 2), 'frozen_b': (2, 2, 8),
      }.items())
  }
  found = equivalents.low_rank(adapter, arrays, {})
  want = -0.5 * np.einsum(
      'eir,ero->io', arrays['frozen_a'], arrays['frozen_b']
  )
  product = found['shared_lora_a'][0] @ found['shared_lora_b'][0]
  formulas.close(product, want)
  assert {'lora_a', 'lora_b', 'shared_lora_a', 'shared_lora_b'} == set(found)
