# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""One case of the card's table, in a process of its own (see processes.py).

So a case that the card has no room for ends nothing else, one that is still
being compiled can be given up, and memory is the case's alone.
"""

from collections.abc import Callable, Mapping
import json
import os
import shutil
import subprocess
import sys
from typing import Any

import absl.logging
import jax
import jax.numpy as jnp

from benchmarks import decoder
from benchmarks import experiments
from benchmarks import floor
from benchmarks import layer
from benchmarks import step
from benchmarks import timing
from moe_peft import gin_files
from moe_peft.core import trainable
from moe_peft.training import experiment as experiment_lib

# Files of gin/methods/ of what the table compares.
FROZEN = 'frozen network'
METHODS = {
    FROZEN: 'lora', layer.PLAIN_LORA: 'lora',
    layer.SOFT: 'molora', layer.TOP_2: 'molora_topk',
}
# Every dense layer, as the peers have it.
SITES = '.*/(query|key|value|out|wi_0|wi_1|wo)'


def card() -> dict[str, Any]:
  """What this machine has: `platform`, `devices`, and all of it in words."""
  device = jax.devices()[0]
  words = [device.device_kind]
  if shutil.which('nvidia-smi'):
    query = '--query-gpu=memory.total,driver_version'
    answer = subprocess.run(
        ['nvidia-smi', query, '--format=csv,noheader'],
        capture_output=True, text=True, check=True,
    ).stdout
    words += answer.splitlines()[0].split(', ')
    words[-1] = f'driver {words[-1]}'
  elif stats := device.memory_stats():
    words.append(f'{stats["bytes_limit"] / 2**20:.0f} MiB')
  words.append(f'JAX {jax.__version__}')
  return {
      'platform': device.platform,
      'devices': jax.device_count(),
      'card': ', '.join(words),
  }


def of_network(name: str, sizes: Mapping[str, Any]) -> Any:
  """A training step, or of `FROZEN` forward pass and input gradients.

  Args:
    name: Key of `METHODS`.
    sizes: `batch_size`, `length` (a T5's inputs, and a quarter of it targets),
      `num_experts`, `rank`, gin's `bindings`, and a file of gin/models/ as
      `model` or the sizes of a decoder.
  """
  rank, num_experts = sizes['rank'], sizes['num_experts']
  bindings = {
      'SITES': SITES, 'SCAN_LAYERS': True,
      'ACTIVATION_DTYPE': 'bfloat16', 'BASE_DTYPE': 'bfloat16',
      **(
          {'RANK': rank * num_experts} if METHODS[name] == 'lora'
          else {'RANK': rank, 'NUM_EXPERTS': num_experts}
      ),
      **sizes['bindings'],
  }
  batch_size, length = sizes['batch_size'], sizes['length']
  if 'model' in sizes:
    experiment = experiments.build(
        sizes['model'], METHODS[name], (length, length // 4), batch_size,
        bindings,
    )
  else:
    experiment = decoder.build(
        sizes, batch_size, length, METHODS[name], bindings
    )
  return frozen(experiment) if name == FROZEN else step.Step(experiment)


def frozen(experiment: experiment_lib.Experiment) -> timing.Compiled:
  """The bare network's forward pass and input gradients."""
  setup = experiments.prepare(experiment)
  bare = {
      name: x for name, x in setup.frozen.items()
      if not trainable.is_adapter(name)
  }
  embedding = {floor.EMBEDDING: bare.pop(floor.EMBEDDING)}
  with setup.context():
    return timing.Compiled(
        floor.input_gradients(experiment.model.without_adapters()),
        embedding, bare, experiments.random_batch(experiment),
    )


def of_layer(name: str, sizes: Mapping[str, Any]) -> timing.Compiled:
  """One layer with its gradients, or a product alone.

  Args:
    name: As in the layer's table.
    sizes: `features`, `tokens`, `num_experts`, `rank`.
  """
  one = layer.Layer(sizes['features'], sizes['tokens'], jnp.bfloat16)
  if name == layer.MATMUL:
    return one.product()
  if name == layer.FROZEN:
    return one.frozen()
  adapters = layer.adapters(sizes['num_experts'], sizes['rank'])
  return one.adapted(adapters[name])


def build(request: Mapping[str, Any]) -> Callable[[], float]:
  """Compiles a case.

  Args:
    request: `case`, its name in the table, and its sizes.

  Returns:
    What times one call, with `facts`.
  """
  make = of_layer if 'features' in request else of_network
  return make(request['case'], request)


def peak_mib(facts: Mapping[str, float]) -> float:
  """What the device has needed; where it does not say, what XLA says."""
  stats = jax.devices()[0].memory_stats() or {}
  peak = stats.get('peak_bytes_in_use')
  return facts['peak_mib'] if peak is None else peak / 2**20


def main() -> None:
  # Whatever is printed must not get between the answers.
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  absl.logging.set_verbosity(absl.logging.ERROR)
  answer = lambda x: print(json.dumps(x), file=answers, flush=True)
  request = json.loads(sys.stdin.readline())
  if request['case'] == 'card':
    answer(card())
    return
  gin_files.import_tensorflow()
  case = build(request)
  facts = case.facts()
  answer(facts)
  for _ in sys.stdin:
    answer({'seconds': case(), 'peak_mib': peak_mib(facts)})


if __name__ == '__main__':
  main()
