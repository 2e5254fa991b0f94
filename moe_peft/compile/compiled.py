# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A training step compiled for a TPU slice, and what the compiler says of it.

Nothing runs. Memory and the program are the TPU compiler's; FLOPs and bytes are
counted in its program; times are what the published peaks of the chips allow.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import itertools
import math
import time
from typing import Any

import jax

from moe_peft import errors
from moe_peft.compile import hlo
from moe_peft.compile import topologies
from moe_peft.core import inject
from moe_peft.core import trainable
from moe_peft.models import stack
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import train_step

LARGEST = 12  # Collectives listed one by one.


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
          f'--execution={execution}: {factory.__name__} does not let it be '
          'chosen. Leave the flag out.'
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


def compile_step(setup: experiment_lib.Setup) -> Any:
  """Compiles the training step of a setup made by `experiment.lay_out`.

  Returns:
    `jax.stages.Compiled`.
  """
  with setup.context():
    return (
        train_step.make_train_step(setup)
        .lower(
            train_step.abstract_state(setup),
            setup.frozen,
            train_step.abstract_batch(setup),
        )
        .compile()
    )


def make_report(
    experiment: experiment_lib.Experiment,
    topology: topologies.Topology,
    keep: Callable[[bytes], None] | None = None,
) -> dict[str, Any]:
  """Compiles the training step of an experiment for a slice.

  Args:
    experiment: The experiment.
    topology: The slice.
    keep: Called with the serialized program, a `HloModuleProto`.

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
    compiled = compile_step(setup)
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return report | {'fits': False, 'error': _first_lines(str(error))}
  report['compile'] = {
      'seconds': round(time.monotonic() - start, 1),
      'cpu_seconds': round(time.process_time() - cpu, 1),
  }
  (module,) = compiled.runtime_executable().hlo_modules()
  serialized = module.as_serialized_hlo_module_proto()
  if keep is not None:
    keep(serialized)
  report['memory'] = memory(setup, compiled.memory_analysis())
  report['memory']['limit'] = topology.chip.hbm_bytes
  report['fits'] = report['memory']['total'] <= topology.chip.hbm_bytes
  return report | count(setup, hlo.Program(serialized), topology)


def _memory_choices(experiment: experiment_lib.Experiment) -> dict[str, Any]:
  """What a user decides about memory, from the network's configuration."""
  config = experiment.model.module.module.config
  return {
      'base_dtype': str(jax.numpy.dtype(experiment.base_dtype)),
      'activation_dtype': str(jax.numpy.dtype(config.dtype)),
      'scan_layers': config.scan_layers,
      'remat_policy': config.remat_policy,
  }


def _first_lines(message: str) -> str:
  """What of the compiler's error says how much is needed."""
  lines = [line.strip() for line in message.splitlines() if line.strip()]
  return ' '.join(lines[:2])[:400]


def bytes_on_device(tree: Any) -> int:
  """Bytes of `jax.ShapeDtypeStruct`s that one device holds."""
  return sum(
      math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
      for x in jax.tree.leaves(tree)
  )


def memory(setup: experiment_lib.Setup, stats: Any) -> dict[str, Any]:
  """HBM of one device by kind, in bytes.

  Args:
    setup: What was compiled.
    stats: `compiled.memory_analysis()`.
  """
  state = train_step.abstract_state(setup)
  donated = bytes_on_device(state)
  arguments = stats.argument_size_in_bytes
  kinds = {
      'frozen base': bytes_on_device(setup.frozen),
      'adapters': bytes_on_device(state.params),
      'optimizer': bytes_on_device(state.opt_state),
      'batch': bytes_on_device(train_step.abstract_batch(setup)),
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


def _is_adapter(value: Any) -> bool:
  return f'/{inject.ADAPTER_SCOPE}/' in value.op_name


def _share(part: float, whole: float) -> float:
  return part / whole if whole else 0.0


def count(
    setup: experiment_lib.Setup,
    program: hlo.Program,
    topology: topologies.Topology,
) -> dict[str, Any]:
  """What one device computes and exchanges in a step, and how long it must.

  Args:
    setup: What was compiled.
    program: What the compiler made of it.
    topology: For which slice.
  """
  products, collectives = program.products(), program.collectives()
  flops = hlo.total(products, 'flops')
  of_adapters = hlo.total(filter(_is_adapter, products), 'flops')
  return {
      'flops': {
          'per_device': flops,
          'adapters': of_adapters,
          'adapter_share': _share(of_adapters, flops),
      },
      'collectives': _collectives(collectives),
      'kernel_sized_collectives': _kernel_sized(setup, collectives),
      'not_counted': {
          'loops of unknown length': program.unknown_loops,
          'custom calls': program.custom_calls(),
      },
      'roofline': _roofline(setup, flops, collectives, topology.chip),
  }


def _roofline(
    setup: experiment_lib.Setup,
    flops: int,
    collectives: Sequence[hlo.Collective],
    chip: topologies.Chip,
) -> dict[str, Any]:
  """The least time that a step can take, from the chip's published peaks.

  Each of the three is alone and at its peak: nothing waits, all links of a chip
  send at once, parameters and optimizer state are read once and activations
  never leave the chip. A real step takes longer.
  """
  state = train_step.abstract_state(setup)
  seconds = {
      'compute': flops / chip.peak_flops,
      'exchange': hlo.total(collectives, 'traffic') / chip.ici_bandwidth,
      'memory': bytes_on_device((state, setup.frozen)) / chip.hbm_bandwidth,
  }
  experiment = setup.experiment
  lengths = experiment.task_feature_lengths.values()
  tokens = experiment.batch_size * sum(lengths)
  return {
      'seconds': seconds,
      'bound': max(seconds, key=seconds.get),
      'tokens_per_second_at_most': tokens / max(seconds.values()),
  }


def _collectives(collectives: Sequence[hlo.Collective]) -> dict[str, Any]:
  """Sums by kind, of adapters, and the largest ones."""
  by_kind = collections.defaultdict(list)
  by_array = collections.defaultdict(list)
  for x in collectives:
    by_kind[x.kind].append(x)
    key = (x.kind, x.dtype, x.shape, x.group_size, _is_adapter(x))
    by_array[key].append(x)
  num_bytes = hlo.total(collectives, 'bytes')
  of_adapters = hlo.total(filter(_is_adapter, collectives), 'bytes')
  largest = sorted(
      by_array.items(), key=lambda item: -hlo.total(item[1], 'bytes')
  )
  return {
      'bytes': num_bytes,
      'traffic': hlo.total(collectives, 'traffic'),
      'adapters': of_adapters,
      'adapter_share': _share(of_adapters, num_bytes),
      'by_kind': {
          kind: {
              'count': hlo.total(xs, 'times'),
              'bytes': hlo.total(xs, 'bytes'),
              'adapters': hlo.total(filter(_is_adapter, xs), 'bytes'),
          }
          for kind, xs in sorted(by_kind.items())
      },
      'largest': [
          {
              'kind': kind,
              'array': f'{dtype}[{",".join(map(str, shape))}]',
              'group_size': group,
              'of': 'adapters' if adapter else 'network',
              'count': hlo.total(xs, 'times'),
              'bytes': hlo.total(xs, 'bytes'),
          }
          for (kind, dtype, shape, group, adapter), xs in largest[:LARGEST]
      ],
  }


def _kernel_sized(
    setup: experiment_lib.Setup, collectives: Sequence[hlo.Collective]
) -> dict[str, int]:
  """Collectives of the shape of a frozen kernel, by parameter, with counts.

  Such a one moves weights, or gradients of them, where only tokens should move.
  An array is told by its shape alone, so activations that happen to have that
  of a kernel are counted too. Arrays of adapters are small, whatever their
  shape.
  """
  moved = collections.Counter()
  for x in itertools.filterfalse(_is_adapter, collectives):
    moved[_shape_key(x.shape)] += x.times
  found = {}
  for path, x in setup.frozen.items():
    if not path.endswith('/kernel'):
      continue
    # A gather returns the whole; sums are of what one device holds.
    keys = {
        _shape_key(shape)
        for whole in (x.shape, x.sharding.shard_shape(x.shape))
        for shape in _shapes(whole, trainable.is_scanned(path))
    }
    times = sum(moved[key] for key in keys if len(key) > 1)
    if times:
      found[path] = times
  return found


def _shapes(
    shape: tuple[int, ...], scanned: bool
) -> Iterator[tuple[int, ...]]:
  """The shapes that a kernel may be moved in: layer by layer, heads joined."""
  yield shape
  if scanned:
    shape = shape[: stack.PARAM_SCAN_AXIS] + shape[stack.PARAM_SCAN_AXIS + 1 :]
    yield shape
  if len(shape) == 3:  # [embed, heads, kv] or [heads, kv, embed].
    yield shape[0], shape[1] * shape[2]
    yield shape[0] * shape[1], shape[2]


def _shape_key(shape: Sequence[int]) -> tuple[int, ...]:
  """Sizes in any order, for a transposed array, without those of one."""
  return tuple(sorted(size for size in shape if size > 1))
