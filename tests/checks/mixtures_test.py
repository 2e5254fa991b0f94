# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Each check of a mixture, and of a scan, finds the method that breaks it."""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.checks import layers
from moe_peft.checks import mixtures
from moe_peft.checks import outcome
from moe_peft.core import routing
from moe_peft.methods import bottleneck
from moe_peft.methods import ia3
from moe_peft.methods import lora
from moe_peft.methods import mode
from moe_peft.methods import molora
from moe_peft.methods import mov
from tests import tiny_network
from tests.checks import tiny

OPTIONS = {'num_experts': 3, 'rank': 2}


class Unscaled(molora.MoLoRA):
  """Forgets to divide by the rank."""

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    lora_a, lora_b = self.kernels(inputs.shape[-1], outputs.shape[-1])
    mixture, _ = self.mix(inputs, tokens, lora_a)
    return outputs + mixture.up(lora_b * self.alpha)


class Added(mov.MoV):
  """Adds the vector and does not multiply with it."""

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    shape = (self.num_experts, outputs.shape[-1])
    scaling = self.param_with_axes(
        'scaling', nn.initializers.ones, shape, ('expert', 'unmodeled')
    )
    return outputs + scaling.mean(0) - 1


class FirstTwice(molora.MoLoRA):
  """Counts its first expert twice."""

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    lora_a, lora_b = self.kernels(inputs.shape[-1], outputs.shape[-1])
    mixture, _ = self.mix(inputs, tokens, lora_a)
    return outputs + mixture.up(lora_b.at[0].multiply(2.0))


class Sorted(routing.Router):
  """Gives the largest weight to the first expert."""

  def __call__(self, *args, **kwargs):
    decision = super().__call__(*args, **kwargs)
    return decision.replace(
        combine_weights=-jnp.sort(-decision.combine_weights, axis=-1)
    )


class Halved(molora.MoLoRA):
  """Is half as much where tokens are sorted by expert."""

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    adapted = super().__call__(inputs, outputs, tokens)
    if self.execution == 'ragged':
      return outputs + (adapted - outputs) / 2
    return adapted


class Numbered(molora.MoLoRA):
  """Is stronger in higher layers, if it knows in which it is."""

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    adapted = super().__call__(inputs, outputs, tokens)
    return outputs + (adapted - outputs) * (1 + (self.site.layer or 0))


MUTANTS = [
    (mixtures.one_expert, Unscaled, OPTIONS, 'one expert'),
    (mixtures.one_expert, Added, {'num_experts': 3}, 'one expert'),
    (mixtures.permutation, FirstTwice, OPTIONS, 'another order'),
    (
        mixtures.permutation, molora.MoLoRA,
        {**OPTIONS, 'router_factory': Sorted}, 'another order',
    ),
    (mixtures.executions, Halved, OPTIONS, "'ragged'"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('check', 'mutant', 'options', 'says'), MUTANTS,
    ids=[f'{x[0].__name__}-{x[1].__name__}' for x in MUTANTS],
)
def test_a_check_finds_what_breaks_it(check, mutant, options, says):
  with pytest.raises(outcome.Failure, match=says):
    check(tiny.adapted(mutant, **options))


@pytest.mark.slow
@pytest.mark.parametrize(
    ('method', 'options'),
    [(molora.MoLoRA, OPTIONS), (lora.LoRA, {'rank': 2}), (ia3.IA3, {}),
     (mov.MoV, {'num_experts': 3})],
    ids=lambda x: getattr(x, '__name__', ''),
)
def test_one_expert_is_the_plain_method(method, options):
  mixtures.one_expert(tiny.adapted(method, **options))


@pytest.mark.slow
def test_experts_of_another_kind_have_no_plain_method():
  with pytest.raises(outcome.Skipped, match='neither'):
    mixtures.one_expert(tiny.adapted(bottleneck.Bottleneck, **OPTIONS))


@pytest.mark.slow
@pytest.mark.parametrize('method', [molora.MoLoRA, mode.MoDE])
def test_an_order_of_experts_does_not_matter(method):
  # MoDE has its ranks and experts on one axis.
  mixtures.permutation(tiny.adapted(method, **OPTIONS))


def test_flipping_moves_the_experts_and_nothing_else():
  x = np.arange(24).reshape(2, 12)
  got = mixtures._flipped(x, (2, 16))  # Three parts of four, or five, experts.
  want = x.reshape(2, 4, 3)[..., ::-1].reshape(2, 12)
  np.testing.assert_array_equal(got, want)


@pytest.mark.slow
def test_executions_are_equal():
  mixtures.executions(tiny.adapted(molora.MoLoRA, **OPTIONS))


@pytest.mark.slow
def test_a_method_of_one_execution_is_skipped():
  subject = tiny.adapted(mov.MoV, num_experts=3)
  with pytest.raises(outcome.Skipped, match='vectors'):
    mixtures.executions(subject)
  with pytest.raises(outcome.Skipped, match='router'):
    mixtures.executions(tiny.adapted(lora.LoRA, rank=2))


def compare_scan(method):
  unrolled, scanned = (
      tiny.network(method, config=tiny_network.Config(scan=scan), **OPTIONS)
      for scan in (False, True)
  )
  layers.compare(tiny.subject(unrolled), unrolled, scanned)


@pytest.mark.slow
def test_a_scan_is_its_layers():
  compare_scan(molora.MoLoRA)
  with pytest.raises(outcome.Failure, match='scan'):
    compare_scan(Numbered)


@pytest.mark.slow
def test_what_a_scan_drops_is_found():
  unrolled = tiny.network(molora.MoLoRA, **OPTIONS)
  dropped = tiny.network(
      molora.MoLoRA, config=tiny_network.Config(scan=True), **OPTIONS
  )

  def call(module, params, batch, training):
    outputs, metrics = tiny.call(module, params, batch, training)
    return outputs, {} if module is dropped else metrics

  subject = dataclasses.replace(tiny.subject(unrolled), call=call)
  with pytest.raises(outcome.Failure, match='sow'):
    layers.compare(subject, unrolled, dropped)


def test_a_network_without_a_scan_is_skipped():
  with pytest.raises(outcome.Skipped, match='scan_layers'):
    layers.scan(tiny.adapted(molora.MoLoRA, **OPTIONS))


@pytest.mark.slow
def test_stacking_repeats_what_layers_share():
  params = {
      'encoder/layers_0/wo': jnp.zeros((2, 6)),
      'encoder/layers_1/wo': jnp.ones((2, 6)),
      'encoder/bias': jnp.arange(3.0),
      'norm': jnp.ones(4),
  }
  shapes = {
      'encoder/encoder/wo': (2, 2, 2, 3),
      'encoder/encoder/bias': (3, 2),
      'norm': (4,),
  }
  stacked = layers.stack(
      params, {k: jax.ShapeDtypeStruct(x, jnp.float32)
               for k, x in shapes.items()}
  )
  assert {k: x.shape for k, x in stacked.items()} == shapes
  np.testing.assert_array_equal(stacked['encoder/encoder/wo'][:, 1], 1.0)
  np.testing.assert_array_equal(
      stacked['encoder/encoder/bias'], [[0, 0], [1, 1], [2, 2]]
  )
