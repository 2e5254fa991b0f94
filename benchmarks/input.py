# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether the data keep up with the training step, packed and not."""

import time
from typing import Any, Callable, Mapping

import jax
import numpy as np

from benchmarks import devices
from benchmarks import experiments
from benchmarks import tables
from benchmarks import timing
from moe_peft import partitioning
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import loop
from moe_peft.training import train_step

COLUMNS = (
    tables.Column('data_rate', 'data: examples/s', ',.0f'),
    tables.Column('step_rate', 'step: examples/s', ',.0f'),
    tables.Column('data_over_step', 'data / step', ',.1f'),
    tables.Column('waiting', 'step waits, %', '.1f', 100),
    tables.Column('examples_per_row', 'examples a row', '.2f'),
    tables.Column('real_tokens', 'real tokens, %', '.0f', 100),
)
NOTE = (
    'data: the pipeline alone. step: on a batch that is there. waits: share of '
    'a loop over both that is spent on the next batch.'
)


def run(
    options: tables.Options, progress: Callable[[str], None]
) -> list[tables.Table]:
  """The word tasks on the small T5, the README's first command."""
  return [measure(64, 8 if options.quick else 40, options, progress)]


def measure(
    batch_size: int,
    steps: int,
    options: tables.Options,
    progress: Callable[[str], None],
    bindings: Mapping[str, Any] | None = None,
) -> tables.Table:
  """One table.

  Args:
    batch_size: Rows of a step.
    steps: Batches that are timed.
    options: Of the command line.
    progress: Told what is being done.
    bindings: Further gin bindings.
  """
  rows = []
  for name, packing in (('not packed', False), ('packed', True)):
    progress(f'compile {name}')
    experiment = experiments.build(
        'tiny_t5', 'molora', (128, 64), batch_size,
        {
            **(bindings or {}),
            'MIXTURE_OR_TASK_NAME': 'quickstart',
            'PACKING': packing,
        },
    )
    progress(f'run {name}')
    rows.append({'case': name, **_rates(experiment, steps)})
  return tables.Table(
      'input',
      f'Input: word tasks, tiny_t5, MoLoRA, encoder 128, decoder 64, batch '
      f'{batch_size}, float32, {devices.describe(options.threads)}',
      COLUMNS, rows, (NOTE,),
  )


def _rates(
    experiment: experiment_lib.Experiment, steps: int
) -> dict[str, float]:
  """Measures data alone, the step alone, and both as the loop has them."""
  setup = experiments.prepare(experiment)
  state = train_step.init_state(setup)
  data = loop.train_data(experiment)
  sharding = partitioning.batch_sharding(setup.mesh)
  batch = jax.device_put(next(data), sharding)
  with setup.context():
    step_fn = timing.Compiled(
        train_step.make_train_step(setup), state, setup.frozen, batch
    ).compiled
    state, metrics = step_fn(state, setup.frozen, batch)
    jax.block_until_ready(metrics)

    start = time.perf_counter()
    batches = [next(data) for _ in range(steps)]
    data_seconds = (time.perf_counter() - start) / steps

    start = time.perf_counter()
    for _ in range(steps):
      state, metrics = step_fn(state, setup.frozen, batch)
    jax.block_until_ready(metrics)
    step_seconds = (time.perf_counter() - start) / steps

    waited, start = 0.0, time.perf_counter()
    for _ in range(steps):
      before = time.perf_counter()
      batch = jax.device_put(next(data), sharding)
      waited += time.perf_counter() - before
      state, metrics = step_fn(state, setup.frozen, batch)
      jax.block_until_ready(metrics)
    waiting = waited / (time.perf_counter() - start)
  examples = num_examples(batches) / steps
  return {
      'data_rate': examples / data_seconds,
      'step_rate': examples / step_seconds,
      'data_over_step': step_seconds / data_seconds,
      'waiting': waiting,
      'examples_per_row': examples / experiment.batch_size,
      'real_tokens': np.mean(
          [np.asarray(b['encoder_input_tokens']) > 0 for b in batches]
      ).item(),
  }


def num_examples(batches: list[Mapping[str, Any]]) -> int:
  """Examples in batches; packed rows number theirs from 1."""
  return sum(
      int(np.max(np.asarray(batch['decoder_segment_ids']), axis=1).sum())
      if 'decoder_segment_ids' in batch
      else len(batch['decoder_target_tokens'])
      for batch in batches
  )
