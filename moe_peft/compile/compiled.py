# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A training step compiled for a TPU slice, and what the compiler says of it.

Nothing runs: memory and the program are the TPU compiler's.
"""

import dataclasses
import functools
import math
from pathlib import Path
import time
from typing import Any

import jax

from moe_peft import atomic
from moe_peft import errors
from moe_peft.compile import costs
from moe_peft.compile import hlo
from moe_peft.compile import topologies
from moe_peft.core import quantized
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import remat
from moe_peft.training import train_step


def with_execution(
    experiment: experiment_lib.Experiment, execution: str
) -> experiment_lib.Experiment:
  """The experiment with all experts run by one execution.

  Raises:
    errors.UserError: If a method does not let it be chosen.
  """
  module = experiment.model.module
  rules = []
  for rule in module.rules:
    factory = rule.adapter_factory
    if not hasattr(factory, 'execution'):  # A field of every MoeAdapter.
      raise errors.UserError(
          f'The execution of {factory.__name__} cannot be {execution}: it '
          'cannot be chosen.',
          '--execution',
          'Leave the flag out.',
      )
    rules.append(
        dataclasses.replace(
            rule,
            adapter_factory=functools.partial(factory, execution=execution),
        )
    )
  model = dataclasses.replace(
      experiment.model, module=module.clone(rules=tuple(rules))
  )
  return dataclasses.replace(experiment, model=model)


def make_report(
    experiment: experiment_lib.Experiment,
    topology: topologies.Topology,
    file: Path | None = None,
) -> dict[str, Any]:
  """Compiles the training step of an experiment for a slice.

  Args:
    experiment: The experiment.
    topology: The slice.
    file: Where the program is kept, as a serialized `HloModuleProto`.

  Returns:
    Numbers and text, ready for JSON. A program that the compiler refuses for
    its size has `fits: False` and the compiler's words as `error`.

  Raises:
    errors.UserError: For a mesh that does not divide, or if libtpu is missing.
  """
  setup = experiment_lib.lay_out(experiment, topology.devices())
  report = {
      'topology': topology.name,
      'chips': topology.num_chips,
      'mesh': dict(setup.mesh.shape),
      'batch_size': experiment.batch_size,
      'num_microbatches': experiment.num_microbatches,
      'task_feature_lengths': dict(experiment.task_feature_lengths),
      **_memory_choices(experiment),
  }
  start, cpu = time.monotonic(), time.process_time()
  try:
    setup, compiled = remat.fitting(setup, topology.chip.hbm_bytes)
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return report | {'fits': False, 'error': _first_lines(str(error))}
  report['compile'] = {
      'seconds': round(time.monotonic() - start, 1),
      'cpu_seconds': round(time.process_time() - cpu, 1),
  }
  report |= _memory_choices(setup.experiment)
  (module,) = compiled.runtime_executable().hlo_modules()
  serialized = module.as_serialized_hlo_module_proto()
  if file is not None:
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(file, serialized)
  report['memory'] = memory(setup, compiled.memory_analysis())
  report['memory']['limit'] = topology.chip.hbm_bytes
  report['fits'] = report['memory']['total'] <= topology.chip.hbm_bytes
  return report | costs.count(setup, hlo.Program(serialized), topology)


def _memory_choices(experiment: experiment_lib.Experiment) -> dict[str, Any]:
  """What a user decides about memory, from the network's configuration."""
  config = experiment.model.module.module.config
  return {
      'base_dtype': quantized.name_of(experiment.base_dtype),
      'activation_dtype': str(jax.numpy.dtype(config.dtype)),
      'scan_layers': config.scan_layers,
      'remat_policy': config.remat_policy,
      'attention': config.attention,
  }


def _first_lines(message: str) -> str:
  """What of the compiler's error says how much is needed."""
  lines = [line.strip() for line in message.splitlines() if line.strip()]
  return ' '.join(lines[:2])[:400]


def memory(setup: experiment_lib.Setup, stats: Any) -> dict[str, Any]:
  """HBM of one device by kind, in bytes.

  Args:
    setup: What was compiled.
    stats: `compiled.memory_analysis()`.
  """
  state = train_step.abstract_state(setup)
  donated = costs.bytes_on_device(state)
  arguments = stats.argument_size_in_bytes
  kinds = {
      'frozen base': costs.bytes_on_device(setup.frozen),
      'adapters': costs.bytes_on_device(state.params),
      'optimizer': costs.bytes_on_device(state.opt_state),
      'batch': costs.bytes_on_device(train_step.abstract_batch(setup)),
  }
  outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
  kinds |= {
      'layout padding': max(0, arguments - sum(kinds.values())),
      'temporaries': stats.temp_size_in_bytes,
      'outputs not donated': outputs,
      'code': stats.generated_code_size_in_bytes,
  }
  return {
      'by_kind': kinds,
      'total': sum(kinds.values()),
      'state': donated,
      'aliased': stats.alias_size_in_bytes,
      # Without sharding of adapters and optimizer.
      'replicated_state': sum(
          math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state)
      ),
  }
