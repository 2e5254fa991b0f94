# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What of a forward pass a device can afford to keep, by the compiler.

With REMAT_POLICY = 'auto' the training step is compiled with one policy after
the other, fastest first, and the first whose memory fits is taken. Where a
device does not say how much memory it has, as CPUs, that is the first one.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax

from moe_peft import errors
from moe_peft.models import stack
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import memory
from moe_peft.training import train_step

AUTO = 'auto'
# Fastest first.
POLICIES = tuple(name for name in stack.REMAT_POLICIES if name != AUTO)


def policy_of(experiment: experiment_lib.Experiment) -> str | None:
  """The policy of an experiment; None for a network that has none."""
  network = getattr(experiment.model.module, 'module', None)
  return getattr(getattr(network, 'config', None), 'remat_policy', None)


def with_policy(
    setup: experiment_lib.Setup, policy: str
) -> experiment_lib.Setup:
  """The setup with another policy, on the same arrays."""
  model = setup.experiment.model
  network = model.module.module
  config = dataclasses.replace(network.config, remat_policy=policy)
  module = model.module.clone(module=network.clone(config=config))
  experiment = dataclasses.replace(
      setup.experiment, model=dataclasses.replace(model, module=module)
  )
  return dataclasses.replace(setup, experiment=experiment)


def compile_step(setup: experiment_lib.Setup) -> Any:
  """Compiles the training step of a setup, also one of `experiment.lay_out`.

  Returns:
    `jax.stages.Compiled`.
  """
  return train_step.lower(setup).compile()


def is_too_large(error: jax.errors.JaxRuntimeError) -> bool:
  """Whether a compiler refuses a program for its size."""
  return 'RESOURCE_EXHAUSTED' in str(error)


def num_bytes(compiled: Any) -> int:
  """Memory of one device for a compiled step, base and state included."""
  stats = compiled.memory_analysis()
  return (
      stats.argument_size_in_bytes
      + stats.output_size_in_bytes
      - stats.alias_size_in_bytes
      + stats.temp_size_in_bytes
      + stats.generated_code_size_in_bytes
  )


def limit_of(setup: experiment_lib.Setup) -> int | None:
  """Bytes of one device; None if it does not say."""
  return memory.limit(setup.mesh.devices.flat[0])


def figures(setup: experiment_lib.Setup) -> dict[str, int | None]:
  """Bytes that a device needs with each policy; None for more than it has.

  A network that has no policies has one figure.
  """
  candidates = {'as it is': setup}
  if policy_of(setup.experiment) is not None:
    candidates = {policy: with_policy(setup, policy) for policy in POLICIES}
  found = {}
  for policy, candidate in candidates.items():
    try:
      found[policy] = num_bytes(compile_step(candidate))
    except jax.errors.JaxRuntimeError as error:
      if not is_too_large(error):
        raise
      found[policy] = None
  return found


def fitting(
    setup: experiment_lib.Setup, limit: float | None
) -> tuple[experiment_lib.Setup, Any]:
  """The setup with the policy that 'auto' takes, and its compiled step.

  Args:
    setup: Any setup; one with a policy of its own keeps it.
    limit: Bytes of one device; None if that is not known.

  Raises:
    jax.errors.JaxRuntimeError: If a compiler refuses the last policy too.
  """
  if policy_of(setup.experiment) != AUTO:
    return setup, compile_step(setup)
  for policy in POLICIES:
    candidate = with_policy(setup, policy)
    try:
      compiled = compile_step(candidate)
    except jax.errors.JaxRuntimeError as error:
      if policy == POLICIES[-1] or not is_too_large(error):
        raise
      continue
    if limit is None or num_bytes(compiled) <= limit:
      break
  return candidate, compiled


def for_training(setup: experiment_lib.Setup) -> experiment_lib.Setup:
  """The setup as it is trained on its own devices.

  Raises:
    errors.UserError: If no policy fits.
  """
  if policy_of(setup.experiment) != AUTO:
    return setup
  limit = limit_of(setup)
  if limit is None:
    return with_policy(setup, POLICIES[0])
  try:
    found, compiled = fitting(setup, limit)
  except jax.errors.JaxRuntimeError as error:
    if not is_too_large(error):
      raise
    raise _refusal('too much', limit) from error
  if (needed := num_bytes(compiled)) > limit:
    raise _refusal(f'{needed / 2**30:.1f} GiB', limit)
  return found


def _refusal(needed: str, limit: int) -> errors.UserError:
  return errors.UserError(
      f'A step needs {needed} of a device that has {limit / 2**30:.1f} GiB, '
      'whatever is recomputed.',
      where='REMAT_POLICY',
      remedy="Use NUM_MICROBATCHES, a smaller BATCH_SIZE, or BASE_DTYPE = "
      "'int8' or 'nf4'.",
  )


def summary(found: Mapping[str, int | None]) -> str:
  """The figures in a line."""
  gib = lambda x: 'too much' if x is None else f'{x / 2**30:.2f} GiB'
  return ', '.join(f'{policy} {gib(x)}' for policy, x in found.items())
