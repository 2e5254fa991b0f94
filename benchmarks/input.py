# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether the data keep up with the training step, packed and not."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import itertools
from typing import Any

import jax
import numpy as np

from benchmarks import devices
from benchmarks import experiments
from benchmarks import tables
from benchmarks import timing
from moe_peft.core import partitioning
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import loop
from moe_peft.training import train_step

COLUMNS = (
    tables.Column('data_rate', 'data: examples/s', ',.0f'),
    tables.Column('step_rate', 'step: examples/s', ',.0f'),
    tables.Column('loop_rate', 'both: examples/s', ',.0f'),
    tables.Column('data_over_step', 'data / step', ',.1f'),
    tables.Column('data_cost', 'data cost, %', '.1f', 100),
    tables.Column('examples_per_row', 'examples a row', '.2f'),
    tables.Column('real_tokens', 'real tokens, %', '.0f', 100),
)
NOTE = (
    'data: the pipeline alone. step: on a batch that is there. both: as the '
    'training loop has them, the next batch is fetched while the device '
    "computes. data cost: share of its time that is not the steps'; below zero "
    'it is noise.'
)


def run(
    options: tables.Options, progress: Callable[[str], None]
) -> list[tables.Table]:
  """The word tasks on the small T5, the README's first command."""
  if options.quick:
    one_layer = {
        f't5.T5Config.num_{stack}_layers': 1 for stack in ('encoder', 'decoder')
    }
    return [measure(32, 4, 2, options, progress, one_layer)]
  return [measure(64, 8, 3, options, progress)]


def measure(
    batch_size: int,
    steps: int,
    rounds: int,
    options: tables.Options,
    progress: Callable[[str], None],
    bindings: Mapping[str, Any] | None = None,
) -> tables.Table:
  """One table.

  Args:
    batch_size: Rows of a step.
    steps: Steps, and batches, that are timed together.
    rounds: Times that this is done.
    options: Options of the command line.
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
    data = loop.train_data(experiment)
    rows.append({
        'case': name, **rates(experiment, data, steps, rounds, progress)
    })
  return tables.Table(
      'input',
      f'Input: word tasks, tiny_t5, MoLoRA, encoder 128, decoder 64, batch '
      f'{batch_size}, float32{experiments.describe(bindings)}, '
      f'{devices.describe(options.threads)}',
      COLUMNS, rows, (NOTE,),
  )


def rates(
    experiment: experiment_lib.Experiment,
    data: Iterator[Mapping[str, Any]],
    steps: int,
    rounds: int,
    progress: Callable[[str], None],
) -> dict[str, float]:
  """Measures data alone, both as the loop has them, and the step alone.

  In this order: what the pipeline has fetched ahead meanwhile goes to the data
  alone and not to the loop.

  Args:
    experiment: The one that gin has just built.
    data: Endless batches of it.
    steps: Steps of each measurement.
    rounds: Measurements of each.
    progress: Told what is being done.

  Returns:
    Values of `COLUMNS`, from medians.
  """
  batches = [next(data)]
  run_steps, placed = _steps(experiment, batches[0])
  fetch = lambda: batches.extend(itertools.islice(data, steps))
  cases = {
      'data': lambda: timing.seconds_of(fetch),
      'both': lambda: timing.seconds_of(
          lambda: run_steps(itertools.islice(data, steps))
      ),
      'step': lambda: timing.seconds_of(
          lambda: run_steps(itertools.repeat(placed, steps))
      ),
  }
  seconds = {
      name: of_case['seconds']
      for name, of_case in timing.interleave(cases, rounds, progress).items()
  }
  examples = num_examples(batches) / len(batches)
  return {
      'data_rate': examples * steps / seconds['data'],
      'step_rate': examples * steps / seconds['step'],
      'loop_rate': examples * steps / seconds['both'],
      'data_over_step': seconds['step'] / seconds['data'],
      'data_cost': 1 - seconds['step'] / seconds['both'],
      'examples_per_row': examples / experiment.batch_size,
      'real_tokens': np.mean(
          [np.asarray(b['encoder_input_tokens']) > 0 for b in batches]
      ).item(),
  }


def _steps(
    experiment: experiment_lib.Experiment, batch: Mapping[str, Any]
) -> tuple[Callable[[Iterable[Mapping[str, Any]]], Any], Any]:
  """Compiles a step.

  Returns:
    (a function that runs it on batches, the batch on its devices). Like
    `training.loop` the function never waits for the devices; its caller does,
    by the metrics that it returns.
  """
  setup = experiments.prepare(experiment)
  sharding = partitioning.batch_sharding(setup.mesh)
  placed = jax.device_put(batch, sharding)
  state = train_step.init_state(setup)
  with setup.context():
    step_fn = timing.Compiled(
        train_step.make_train_step(setup), state, setup.frozen, placed
    ).compiled

  def run_steps(batches):
    nonlocal state
    with setup.context():
      for batch in batches:
        batch = jax.device_put(batch, sharding)
        state, metrics = step_fn(state, setup.frozen, batch)
    return metrics

  run_steps([placed])  # The first run of a program is slower.
  return run_steps, placed


def num_examples(batches: list[Mapping[str, Any]]) -> int:
  """Examples in batches; packed rows number theirs from 1."""
  return sum(
      int(np.max(np.asarray(batch['decoder_segment_ids']), axis=1).sum())
      if 'decoder_segment_ids' in batch
      else len(batch['decoder_target_tokens'])
      for batch in batches
  )
