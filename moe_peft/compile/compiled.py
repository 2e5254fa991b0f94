# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A training step compiled for a TPU slice, and what the compiler says of it.

Nothing runs: memory and the program are the TPU compiler's.
"""

import dataclasses
import functools
from pathlib import Path
import time
from typing import Any

import jax

from moe_peft import atomic
from moe_peft import errors
from moe_peft.compile import costs
from moe_peft.compile import hlo
from moe_peft.compile import topologies
from moe_peft.training import memory as memory_lib
from moe_peft.training import remat
from moe_peft.training import step_program


def with_execution(module: Any, execution: str) -> Any:
  """An adapted network with all experts run by one execution.

  Args:
    module: An `inject.AdaptedModule`.
    execution: Name of the execution.

  Raises:
    errors.UserError: If a method does not let it be chosen.
  """
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
  return module.clone(rules=tuple(rules))


def make_report(
    program: step_program.StepProgram,
    topology: topologies.Topology,
    file: Path | None = None,
) -> dict[str, Any]:
  """Compiles a training step for a slice.

  Args:
    program: The step, laid out on the devices of the slice.
    topology: The slice.
    file: Where the program is kept, as a serialized `HloModuleProto`.

  Returns:
    Numbers and text, ready for JSON. A program that the compiler refuses for
    its size has `fits: False` and the compiler's words as `error`.
  """
  limit = topology.chip and topology.chip.hbm_bytes
  report = {
      'topology': topology.name,
      'chips': topology.num_chips,
      'mesh': dict(program.mesh.shape),
      **program.choices,
  }
  start, cpu = time.monotonic(), time.process_time()
  try:
    program, compiled = program.compiled(limit)
  except jax.errors.JaxRuntimeError as error:
    if not remat.is_too_large(error):
      raise
    return report | {'fits': False, 'error': _first_lines(str(error))}
  report['compile'] = {
      'seconds': round(time.monotonic() - start, 1),
      'cpu_seconds': round(time.process_time() - cpu, 1),
  }
  report |= program.choices
  (module,) = compiled.runtime_executable().hlo_modules()
  serialized = module.as_serialized_hlo_module_proto()
  if file is not None:
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(file, serialized)
  report['memory'] = memory(program, compiled.memory_analysis())
  report['memory']['limit'] = limit
  report['fits'] = limit is None or report['memory']['total'] <= limit
  return report | costs.count(program, hlo.Program(serialized), topology)


def _first_lines(message: str) -> str:
  """The lines of the compiler's error that say how much is needed."""
  lines = [line.strip() for line in message.splitlines() if line.strip()]
  return ' '.join(lines[:2])[:400]


def memory(program: step_program.StepProgram, stats: Any) -> dict[str, Any]:
  """HBM of one device by kind, in bytes.

  Args:
    program: What was compiled.
    stats: `compiled.memory_analysis()`.
  """
  state = (program.trained, program.optimizer)
  donated = (state, program.frozen) if program.donates_frozen else state
  arguments = stats.argument_size_in_bytes
  kinds = {
      'frozen base': memory_lib.num_bytes_of_device(program.frozen),
      'adapters': memory_lib.num_bytes_of_device(program.trained),
      'optimizer': memory_lib.num_bytes_of_device(program.optimizer),
      'batch': memory_lib.num_bytes_of_device(program.batch),
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
      'state': memory_lib.num_bytes_of_device(donated),
      'aliased': stats.alias_size_in_bytes,
      # What they would take if adapters and optimizer were not sharded.
      'replicated_state': memory_lib.num_bytes(state),
  }
