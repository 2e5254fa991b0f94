# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Each check of a forward pass finds the adapter that breaks it."""

import dataclasses
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_peft.checks import outcome
from moe_peft.checks import tokens
from moe_peft.core import capacity
from moe_peft.core import inject
from moe_peft.core import routing
from moe_peft.core import selection
from moe_peft.methods import molora
from tests import tiny_network
from tests.checks import tiny

MOLORA = functools.partial(molora.MoLoRA, num_experts=3, rank=2)


class Shifted(tiny.Scale):
  """Adds one more at its initial values than the base."""

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    return super().__call__(inputs, outputs, tokens) + 0.01


class Idle(tiny.Scale):
  """Does nothing, whatever its parameters are."""

  def update(self, inputs, outputs, tokens):
    return jnp.zeros_like(outputs)


class Away(Idle):
  """Does nothing either, and says that it does not begin at the base."""

  @property
  def starts_at_base(self):
    return False

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    return super().__call__(inputs, outputs, tokens) + 0.1


class Drawn(tiny.Scale):
  """Draws a number while the program is made."""

  def update(self, inputs, outputs, tokens):
    return outputs * np.random.normal()


class WholeMean(tiny.Scale):
  """Subtracts the mean of a row, padding included."""

  def update(self, inputs, outputs, tokens):
    return outputs - outputs.mean(axis=1, keepdims=True)


class RowLength(tiny.Scale):
  """Divides by the length of the row, which padding makes longer."""

  def update(self, inputs, outputs, tokens):
    return outputs / outputs.shape[1]


class BatchMean(tiny.Scale):
  """Subtracts the mean over the batch."""

  def update(self, inputs, outputs, tokens):
    return outputs - outputs.mean(axis=0, keepdims=True)


class Ahead(tiny.Scale):
  """Reads the next token."""

  def update(self, inputs, outputs, tokens):
    return jnp.roll(outputs, -1, axis=1)


class AheadInTraining(tiny.Scale):
  """Reads the next token while training."""

  def update(self, inputs, outputs, tokens):
    return jnp.roll(outputs, -1 if self.has_rng('dropout') else 0, axis=1)


class WholePast(tiny.Scale):
  """Reads all tokens before, also those of another packed example."""

  def update(self, inputs, outputs, tokens):
    return jnp.cumsum(outputs, axis=1)


class CountsPadding(routing.Router):
  """Counts padding in its losses."""

  def __call__(self, inputs, tokens=None, product=None, active=None):
    return super().__call__(
        inputs, tokens.replace(valid=None), product, active
    )


MUTANTS = [
    (tokens.identity, Shifted, 'fresh adapters'),
    (tokens.identity, Idle, 'do not change'),
    (tokens.identity, Away, 'do not change'),
    (tokens.determinism, Drawn, 'two evaluations'),
    (tokens.padding, WholeMean, 'other ids at padding'),
    (tokens.padding, RowLength, 'amount of padding'),
    (tokens.batch_mates, BatchMean, 'other mates'),
    (tokens.causality, Ahead, 'Outputs before token'),
    (tokens.causality, AheadInTraining, 'Outputs before token'),
    (tokens.packing, WholePast, 'another example'),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('check', 'mutant', 'says'), MUTANTS,
    ids=[f'{check.__name__}-{mutant.__name__}' for check, mutant, _ in MUTANTS],
)
def test_a_check_finds_what_breaks_it(check, mutant, says):
  with pytest.raises(outcome.Failure, match=says) as caught:
    check(tiny.adapted(mutant))
  assert 'without adapters' not in str(caught.value)


@pytest.mark.slow
def test_padding_that_counts_in_losses_is_found():
  subject = tiny.adapted(
      MOLORA, router_factory=CountsPadding, path='decoder/.*/(key|wo)'
  )
  with pytest.raises(outcome.Failure, match='Means of'):
    tokens.padding(subject)


@pytest.mark.slow
def test_rows_that_compete_for_experts_are_found():
  # Ten tokens an expert of three rows, at evaluation too.
  router = functools.partial(
      routing.Router,
      select=selection.TopK(k=1),
      capacity=capacity.Capacity(
          expert_capacity=4, group_size=18, at_evaluation=True
      ),
  )
  with pytest.raises(outcome.Failure, match='other mates'):
    tokens.batch_mates(tiny.adapted(MOLORA, router_factory=router))


@pytest.mark.slow
@pytest.mark.parametrize(
    'check', [tokens.identity, tokens.determinism, tokens.padding,
              tokens.batch_mates, tokens.causality, tokens.packing],
    ids=lambda check: check.__name__,
)
def test_a_sound_method_passes(sound, check):
  check(sound)


@pytest.fixture(scope='module')
def sound():
  return tiny.adapted(MOLORA)


class _Bidirectional(tiny_network.Network):
  """A network that looks ahead, adapters or not."""

  def __call__(self, *args, **kwargs):
    return jnp.flip(super().__call__(*args, **kwargs), axis=1)


@pytest.mark.slow
def test_a_network_that_looks_ahead_itself_is_told_from_its_adapters():
  rule = inject.OutputRule('.*/key', MOLORA)
  module = inject.AdaptedModule(_Bidirectional(), (rule,))
  with pytest.raises(outcome.Failure, match='without adapters fails too'):
    tokens.causality(tiny.subject(module))
  with pytest.raises(outcome.Skipped, match='network alone'):
    tokens.causality(tiny.subject(module, strict=False))


def test_without_packing_or_padding_there_is_nothing_to_ask():
  subject = tiny.subject(tiny.network(MOLORA))
  with pytest.raises(outcome.Skipped, match='PACKING'):
    tokens.packing(dataclasses.replace(subject, packed=None))
  full = {k: jnp.maximum(x, 1) for k, x in subject.batch.items()}
  with pytest.raises(outcome.Skipped, match='padding'):
    tokens.padding(dataclasses.replace(subject, batch=full))


@pytest.mark.slow
def test_not_a_number_is_not_equal_to_itself():
  nan = jnp.full((2,), jnp.nan)
  with pytest.raises(outcome.Failure):
    outcome.close(nan, nan, 'Numbers')
  with pytest.raises(outcome.Failure):
    outcome.equal(jnp.zeros(2), -jnp.zeros(2), 'Zeros')
  assert jax.numpy.isnan(outcome.difference(nan, nan))
