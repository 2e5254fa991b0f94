# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Of one id, a run that is told ids is a run of plain LoRAs."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from moe_peft.core import id_scores
from moe_peft.core import inject
from moe_peft.core import routing
from moe_peft.core import trainable
from moe_peft.hf import one_id
from moe_peft.hf import trained as trained_lib
from moe_peft.methods import flix
from moe_peft.methods import moelora_id
from moe_peft.methods import mola
from moe_peft.methods import molora
from moe_peft.methods import mtl_lora
from tests.models import example_ids_test as told
from tests.refusals import refused


def method(make, scores, **router):
  return functools.partial(
      make, num_experts=3, rank=2,
      router_factory=functools.partial(routing.Router, scores=scores, **router),
  )


METHODS = {
    'id': method(molora.MoLoRA, id_scores.IdScores(ids=2)),
    'own': told.network('decoder').rules[0].adapter_factory,
    'moelora': method(
        moelora_id.MOELoRAOfIds, moelora_id.EmbeddedIdScores(ids=2)
    ),
    'mtl': method(
        functools.partial(mtl_lora.MTLLoRA, ids=2),
        mtl_lora.SharpIdScores(ids=2),
    ),
    'flix': method(
        molora.MoLoRA,
        flix.FeatureScores(ids=2, features=(('a', 'b'), ('b', 'c'))),
        select=flix.Added(),
    ),
    'depths': functools.partial(
        mola.by_depth,
        functools.partial(
            molora.MoLoRA, rank=2, router_factory=functools.partial(
                routing.Router, scores=id_scores.IdScores(ids=2)
            ),
        ),
        (2, 3),
    ),
}
# Layers of a scan, and layers of different numbers of experts, hence of ranks.
CHANGES = {
    'own': {'num_layers': 2, 'scan_layers': True}, 'depths': {'num_layers': 2}
}


def network(**changes):
  base = told.network('decoder').module
  return base.clone(config=base.config.replace(**changes))


@pytest.mark.slow
@pytest.mark.parametrize('name', METHODS)
def test_it_computes_the_same(name):
  model = dataclasses.replace(
      told.model('decoder'),
      module=told.with_rule(network(**CHANGES.get(name, {})), METHODS[name]),
  )
  params = told.filled(model)
  flat = {k: np.asarray(x) for k, x in trainable.flatten(params).items()}
  rows = [(i, t, 2) for i, t, _ in told.ROWS]
  want = model.score(params, told.batch('decoder', rows))
  one = one_id.of(trained_lib.Trained(model, flat), 1, 'second')
  assert not any('router' in path for path in one.params)
  got = one.model.score(
      trainable.unflatten(one.params), told.batch('decoder', with_ids=False)
  )
  np.testing.assert_allclose(got, want, rtol=1e-4)


def test_an_id_without_features_is_the_base():
  scores = flix.FeatureScores(ids=2, features=((), ('a', 'b', 'c')))
  adapter = method(molora.MoLoRA, scores, select=flix.Added())
  model = dataclasses.replace(
      told.model('decoder'), module=told.with_rule(network(), adapter)
  )
  trained = trained_lib.Trained(model, {
      k: np.asarray(x) for k, x in trainable.flatten(told.filled(model)).items()
  })
  with refused('--example_id', 'base'):
    one_id.of(trained, 0, 'first')
  assert one_id.of(trained, 1, 'second').params


@pytest.mark.slow
def test_what_is_no_lora_of_one_id_is_refused():
  scanned = network(num_layers=2, scan_layers=True)
  for module, word in (
      (told.with_rule(network(), molora.MoLoRA), 'told no ids'),
      # A mask of experts, which a scan needs.
      (told.with_rule(scanned, METHODS['depths']), 'MoLoRA'),
      (inject.AdaptedModule(network()), 'no adapters'),
  ):
    model = dataclasses.replace(told.model('decoder'), module=module)
    params = model.init(jax.random.key(0), told.LENGTHS)['params']
    with refused('--example_id', word):
      one_id.of(trained_lib.Trained(model, trainable.flatten(params)), 0, 'a')
