# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""T5X's own tests, with an adapted network and our classes in the place of its.

They say what T5X's trainer, partitioners and decoding promise each other. Those
of its models bring a network; most others bring mocks, in whose place stand our
models, partitioners, initializer and optimizer.
"""

import functools
import importlib
import sys
import types
import unittest

from absl import flags
import jax
import optax
import pytest
import seqio

from moe_peft.core import inject
from moe_peft.core import routing
from moe_peft.methods import molora

pytest.importorskip('t5x')
pytestmark = pytest.mark.t5x

# The mock of a train state has no parameters to check; that of a decoder is
# asked for the keywords of its call, and our wrapper gives tokens by position.
_OF_MOCKS = (
    'ModelBasedPartitionerTest.test_get_mesh_axes',
    'DecoderOnlyModelTest.test_predict_batch_visible_in_prefill',
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'count'),
    [('models_test', 27), ('partitioning_test', 8), ('trainer_test', 45)],
)
def test_t5x_passes_its_tests_with_an_adapted_model(name, count, monkeypatch):
  _without_package_t5(monkeypatch)
  flags.FLAGS.mark_as_parsed()
  module = importlib.import_module(f't5x.{name}')
  for one in (module, importlib.import_module('t5x.test_utils')):
    for theirs, ours in _ours().items():
      if getattr(one, theirs, None) in (ours.__wrapped__, ours):
        monkeypatch.setattr(one, theirs, ours)
  monkeypatch.setattr(
      module.mock, 'Mock', functools.partial(module.mock.Mock, **_VOCABULARY)
  )
  suite = unittest.TestSuite(
      test
      for case in unittest.defaultTestLoader.loadTestsFromModule(module)
      for test in case
      if not test.id().endswith(_OF_MOCKS)
  )
  result = unittest.TestResult()
  suite.run(result)
  for test, trace in result.errors + result.failures:
    print(test, trace)
  assert not (result.errors or result.failures or result.skipped)
  assert result.testsRun == count


# What ours ask of a vocabulary, for mocks.
_VOCABULARY = {'id_offset': 0, 'stop_ids': ()}


def _without_package_t5(monkeypatch):
  """T5X's tests import its tasks and use none of them."""
  names = ('t5', 't5.data', 't5.data.tasks')
  t5, data, tasks = map(types.ModuleType, names)
  t5.data, data.tasks = data, tasks
  data.get_default_vocabulary = seqio.ByteVocabulary
  for name, module in zip(names, (t5, data, tasks), strict=True):
    monkeypatch.setitem(sys.modules, name, module)


@functools.cache
def _ours():
  """Modules of T5X, by their names, with our classes in them."""
  from t5x import adafactor
  from t5x import models as t5x_models
  from t5x import partitioning
  from t5x import utils
  from t5x.examples.t5 import network

  from moe_peft.t5x import initializer
  from moe_peft.t5x import models
  from moe_peft.t5x import optimizer
  from moe_peft.t5x import partitioners

  make = functools.partial(
      molora.MoLoRA, num_experts=2, rank=2, alpha=2.0,
      router_factory=routing.Router,
  )
  rules = (inject.OutputRule('.*/(query|wo)', make),)

  def adapted(config):
    return inject.AdaptedModule(network.Transformer(config), rules)

  def adapters_only(**_):
    return optimizer.AdapterOptimizer((('.*', optax.adamw(1e-3)),))

  class OnOneDevice(partitioners.Partitioner):
    devices = jax.devices()[:1]  # T5X's tests have batches of two.

  return {
      'adafactor': _with(adafactor, Adafactor=adapters_only),
      'models': _with(
          t5x_models,
          DecoderOnlyModel=models.AdaptedDecoderOnlyModel,
          EncoderDecoderModel=models.AdaptedEncoderDecoderModel,
      ),
      'network': _with(network, Transformer=adapted),
      'partitioning': _with(partitioning, PjitPartitioner=OnOneDevice),
      'utils': _with(
          utils, TrainStateInitializer=initializer.AdapterStateInitializer
      ),
  }


def _with(module, **changed):
  """A copy of a module: ours are made of what is in the module itself."""
  copy = types.ModuleType(module.__name__)
  vars(copy).update(vars(module) | changed | {'__wrapped__': module})
  return copy
