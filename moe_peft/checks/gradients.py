# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks of what training sees: gradients, on one device and on several."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from moe_peft.checks import outcome
from moe_peft.checks import small
from moe_peft.checks import subject as subject_lib
from moe_peft.core import trainable
from moe_peft.training import experiment as experiment_lib


def gradients(subject: subject_lib.Subject) -> None:
  """The loss reaches all that trains, and every loss of adapters something."""
  if not subject.trains:
    raise outcome.Skipped('nothing trains')
  factors = {k: v for k, v in subject.loss_factors.items() if v}
  trained, frozen = trainable.split(subject.moved, subject.trainable_regex)

  def merged(params):
    return trainable.unflatten({**frozen, **params})

  def loss(params):
    return subject.loss(subject.module, merged(params), subject.batch)

  def sown(params, name):
    _, metrics = subject.call(
        subject.module, merged(params), subject.batch, True
    )
    return metrics[name]

  @jax.jit
  def compute(params):
    return {
        'loss': jax.value_and_grad(loss)(params),
        **{name: jax.value_and_grad(sown)(params, name) for name in factors},
    }

  computed = compute(trained)
  _check_all_reached(*computed.pop('loss'))
  for name, (_, grads) in computed.items():
    if not any(np.abs(x).max() > 0 for x in grads.values()):
      raise outcome.Failure(
          f'{name} has a factor of {factors[name]}, and no gradient at all.'
      )


def _check_all_reached(loss: Any, grads: Mapping[str, Any]) -> None:
  if not np.isfinite(loss):
    raise outcome.Failure(f'The loss is {loss}.')
  for path, grad in grads.items():
    if not np.isfinite(grad).all():
      raise outcome.Failure(f'The gradient of {path} is not finite.')
  dead = [
      path for path, grad in grads.items()
      if not (np.abs(grad).max() > 0 or trainable.is_constant(path))
  ]
  if dead:
    raise outcome.Failure(
        f'{len(dead)} of {len(grads)} arrays that train have no gradient, '
        f'{min(dead)} for one.'
    )


def sharded(subject: subject_lib.Subject) -> None:
  """Loss and gradients on a mesh are those of one device."""
  experiment = subject.experiment
  if experiment is None:
    raise outcome.Skipped('the gin files configure no Experiment')
  mesh = (experiment.num_expert_partitions, experiment.num_model_partitions)
  devices = small.devices(experiment)
  if len(devices) == 1:
    raise outcome.Skipped('it needs several devices, and JAX has one')
  alone = dataclasses.replace(
      experiment, num_expert_partitions=1, num_model_partitions=1
  )
  want_loss, want = _loss_and_gradients(subject, alone, devices[:1])
  loss, grads = _loss_and_gradients(subject, experiment, devices)
  outcome.close(loss, want_loss, 'Losses on one device and on the mesh', 1e-4)
  scale = max((np.abs(x).max() for x in want.values()), default=0.0)
  for path, value in want.items():
    apart = outcome.difference(grads[path], value)
    if not apart <= 1e-4 * max(scale, 1e-3):
      raise outcome.Failure(
          f'The gradient of {path} differs by {apart:.3g} on a mesh of 2 x '
          f'{mesh[0]} x {mesh[1]} (data, expert, model); the largest is '
          f'{scale:.3g}.'
      )


def _loss_and_gradients(
    subject: subject_lib.Subject,
    experiment: experiment_lib.Experiment,
    devices: Sequence[jax.Device],
) -> tuple[Any, dict[str, Any]]:
  """Loss and gradients of an experiment's model on devices."""
  setup = experiment_lib.lay_out(experiment, devices)
  params = {
      path: jax.device_put(
          subject.moved[path].astype(x.dtype), setup.shardings[path]
      )
      for path, x in {**setup.trainable, **setup.frozen}.items()
  }
  trained = {path: params.pop(path) for path in setup.trainable}
  batch = jax.device_put(
      dict(subject.batch),
      experiment_lib.partitioning.batch_sharding(setup.mesh),
  )

  def loss(trained, frozen, batch):
    merged = trainable.unflatten({**frozen, **trained})
    return subject.loss(experiment.model.module, merged, batch)

  with setup.context():
    return jax.device_get(
        jax.jit(jax.value_and_grad(loss))(trained, params, batch)
    )
