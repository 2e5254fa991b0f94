# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks of gradients, meshes and runs, and what breaks them."""

import dataclasses
import functools
import re
import types

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_peft.checks import gradients
from moe_peft.checks import outcome
from moe_peft.checks import runs
from moe_peft.checks import small
from moe_peft.core import inject
from moe_peft.core import losses
from moe_peft.core import routing
from moe_peft.core import trainable
from moe_peft.methods import molora
from moe_peft.training import checkpoints
from tests.checks import tiny
from tests.training import tiny as tiny_run

OPTIONS = {'num_experts': 3, 'rank': 2}


class Deaf(routing.Router):
  """A router that no gradient reaches."""

  def __call__(self, *args, **kwargs):
    return jax.lax.stop_gradient(super().__call__(*args, **kwargs))


class Constant(losses.LoadBalance):
  """A loss without a gradient."""

  def __call__(self, routed):
    return jax.lax.stop_gradient(super().__call__(routed))


class Infinite(tiny.Scale):
  """Has a gradient that is not finite where its own is zero."""

  def update(self, inputs, outputs, tokens):
    return jnp.sqrt(jnp.abs(outputs - outputs))


class BySize(molora.MoLoRA):
  """Divides by the number of devices."""

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    adapted = super().__call__(inputs, outputs, tokens)
    devices = jax.sharding.get_abstract_mesh().size or 1
    return outputs + (adapted - outputs) / devices


@pytest.mark.slow
def test_a_router_without_a_gradient_is_found():
  subject = tiny.adapted(molora.MoLoRA, router_factory=Deaf, **OPTIONS)
  with pytest.raises(outcome.Failure, match='router/kernel'):
    gradients.gradients(subject)


@pytest.mark.slow
def test_a_loss_without_a_gradient_is_found():
  router = functools.partial(
      routing.Router, losses=(Constant(), losses.RouterZ())
  )
  module = tiny.network(molora.MoLoRA, router_factory=router, **OPTIONS)
  with pytest.raises(outcome.Failure, match='auxiliary_loss'):
    gradients.gradients(tiny.subject(module, {'auxiliary_loss': 0.1}))
  gradients.gradients(tiny.subject(module, {'router_z_loss': 0.1}))


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_is_found():
  with pytest.raises(outcome.Failure, match='finite'):
    gradients.gradients(tiny.adapted(Infinite))


def experiment(folder, method=None, **bindings):
  """A tiny experiment, with another adapter in the place of MoLoRA if given."""
  made = tiny_run.experiment(folder, SITES='.*/(key|wo)', **bindings)
  if method is None:
    return made
  rule = inject.OutputRule(
      '.*/(key|wo)', functools.partial(method, **OPTIONS)
  )
  module = made.model.module.clone(rules=(rule,))
  return dataclasses.replace(
      made, model=dataclasses.replace(made.model, module=module)
  )


@pytest.mark.slow
def test_what_depends_on_the_number_of_devices_is_found(tmp_path):
  subject = small.subject(experiment(tmp_path, BySize))
  with pytest.raises(outcome.Failure, match='mesh|Losses'):
    gradients.sharded(subject)


@pytest.mark.slow
def test_a_mesh_is_one_device(tmp_path):
  made = experiment(tmp_path, NUM_EXPERT_PARTITIONS=4, NUM_MODEL_PARTITIONS=2)
  subject = small.subject(made)
  assert subject.experiment.num_expert_partitions == 2
  gradients.sharded(subject)


@pytest.mark.parametrize('changes', [
    {'trainable_regex': 'nothing', 'experiment': object()},
    {'experiment': types.SimpleNamespace(train_steps=0)},
], ids=['none', 'no_steps'])
def test_nothing_is_asked_of_training_where_nothing_trains(changes):
  still = dataclasses.replace(
      tiny.adapted(molora.MoLoRA, **OPTIONS), **changes
  )
  for check in (
      gradients.gradients, runs.frozen, runs.optimizer_state, runs.resume
  ):
    with pytest.raises(outcome.Skipped, match='nothing trains'):
      check(still)


@pytest.fixture(scope='module')
def subject(tmp_path_factory):
  return small.subject(experiment(tmp_path_factory.mktemp('run')))


@pytest.mark.slow
@pytest.mark.parametrize(
    'check', [runs.frozen, runs.optimizer_state, runs.resume],
    ids=lambda check: check.__name__,
)
def test_a_run_keeps_what_it_must(subject, check):
  check(subject)


@pytest.mark.slow
def test_a_router_over_frozen_experts_learns(tmp_path):
  """Fresh experts do nothing; those of a bank come with the base."""
  made = tiny_run.experiment(
      tmp_path, 'bank', SITES='.*/wo', NUM_EXPERTS=3, RANK=2
  )
  runs.frozen(small.subject(made))


@pytest.mark.slow
def test_what_trains_beside_the_adapters_is_found(subject, monkeypatch):
  def split(params, regex, required=True):
    """Trains a kernel of the base too."""
    del required
    trains = re.compile(f'{regex}|encoder/.*/wo/kernel').fullmatch
    return (
        {k: v for k, v in params.items() if trains(k)},
        {k: v for k, v in params.items() if not trains(k)},
    )

  monkeypatch.setattr(trainable, 'split', split)
  broken = dataclasses.replace(subject)
  with pytest.raises(outcome.Failure, match='wo/kernel differ'):
    runs.frozen(broken)
  with pytest.raises(outcome.Failure, match='keeps state for 1 frozen'):
    runs.optimizer_state(broken)


@pytest.mark.slow
def test_what_trains_in_name_only_is_found(subject):
  still = dataclasses.replace(subject.experiment, optimizer=optax.set_to_zero())
  with pytest.raises(outcome.Failure, match='have not changed'):
    runs.frozen(dataclasses.replace(subject, experiment=still))


@pytest.mark.slow
def test_state_that_is_lost_in_between_is_found(subject, monkeypatch):
  restore = checkpoints.Checkpointer.restore

  def forget(self, step, state, data=None):
    restored = restore(self, step, state, data)
    zeros = jax.tree.map(jnp.zeros_like, restored.opt_state)
    return restored.replace(opt_state=zeros)

  monkeypatch.setattr(checkpoints.Checkpointer, 'restore', forget)
  with pytest.raises(outcome.Failure, match='after resuming|optimizer'):
    runs.resume(dataclasses.replace(subject))


@pytest.mark.slow
def test_nothing_is_asked_of_a_network_without_a_run():
  alone = tiny.adapted(molora.MoLoRA, **OPTIONS)
  for check in (gradients.sharded, runs.frozen, runs.resume):
    with pytest.raises(outcome.Skipped, match='Experiment'):
      check(alone)
  assert np.isfinite(alone.batch[alone.reads]).all()
