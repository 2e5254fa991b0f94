# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""How time and memory grow with tokens, experts, rank and layers.

The slope of a straight line through logarithms is 1 where cost is in
proportion. What a sweep does not change is taken off first: of the sweeps over
experts and ranks the frozen layer, of that over layers the first layer.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import devices
from benchmarks import experiments
from benchmarks import layer
from benchmarks import step
from benchmarks import tables
from benchmarks import timing
from moe_peft.methods import molora

COLUMNS = (
    tables.Column('fastest', 'ms, fastest', ',.1f', 1e3),
    tables.Column('temp_mib', 'temp MiB', ',.1f'),
    tables.GFLOP,
    tables.Column('time_slope', 'slope of time'),
    tables.Column('temp_slope', 'of memory'),
    tables.Column('gflop_slope', 'of FLOP'),
)
BASE = {'tokens': 2048, 'experts': 10, 'rank': 4}
SWEEPS = {
    'tokens': (256, 512, 1024, 2048, 4096, 8192),
    'experts': (1, 2, 4, 8, 16, 32, 64),
    'rank': (1, 2, 4, 8, 16, 32, 64),
    'layers': (1, 2, 3, 5, 9),
}
QUICK = {
    'tokens': (256, 1024, 4096),
    'experts': (1, 8, 64),
    'rank': (1, 8, 64),
}
NOTES = (
    'Slopes are of what the sweep changes: experts and rank over the frozen '
    'layer, layers (of encoder and decoder) over the first one. A router costs '
    'as much as one more rank, and 1 expert has none.',
)


def run(
    options: tables.Options, progress: Callable[[str], None]
) -> list[tables.Table]:
  """Sweeps over one layer and, not with `quick`, over a step's layers."""
  features, sweeps = (512, QUICK) if options.quick else (1024, SWEEPS)
  rounds = 3 if options.quick else 9
  return [measure(features, BASE, sweeps, rounds, options, progress)]


def measure(
    features: int,
    base: Mapping[str, int],
    sweeps: Mapping[str, Sequence[int]],
    rounds: int,
    options: tables.Options,
    progress: Callable[[str], None],
) -> tables.Table:
  """One table with all sweeps.

  Args:
    features: Inputs and outputs of the layer.
    base: Sizes that a sweep leaves as they are.
    sweeps: By name: sizes, growing.
    rounds: Timed calls of each case.
    options: Options of the command line.
    progress: Told what is being done.
  """
  rows = []
  for name, sizes in sweeps.items():
    progress(f'compile {name}')
    if name == 'layers':
      cases = {f'{name} {n}': _step(n) for n in sizes}
      offset = (f'{name} {sizes[0]}', sizes[0])
    else:
      cases = {f'{name} {n}': _layer(features, {**base, name: n})
               for n in sizes}
      offset = (None, 0)
      if name != 'tokens':
        cases[layer.FROZEN] = _frozen(features, base['tokens'])
        offset = (layer.FROZEN, 0)
    seconds = timing.interleave(cases, rounds, progress)
    measured = {
        case: {**seconds[case], **cases[case].facts()} for case in cases
    }
    rows += _with_slopes(name, sizes, measured, *offset)
  devices.add_rates(rows)
  return tables.Table(
      'scaling',
      f'Scaling: one layer, features {features}, tokens {base["tokens"]}, '
      f'E {base["experts"]}, r {base["rank"]}'
      + '; layers: training step of tiny_t5, MoLoRA' * ('layers' in sweeps)
      + f', {devices.describe(options.threads)}',
      COLUMNS, rows, NOTES,
  )


def slope(sizes: Sequence[float], values: Sequence[float]) -> float | None:
  """Slope of the line through the logarithms; None for less than two points.

  Args:
    sizes: Positive numbers.
    values: As many numbers; those that are not positive are left out.
  """
  points = [(x, y) for x, y in zip(sizes, values, strict=True)
            if x > 0 and y > 0]
  if len(points) < 2:
    return None
  return float(np.polyfit(*np.log(np.array(points)).T, 1)[0])


def _with_slopes(
    name: str,
    sizes: Sequence[int],
    measured: Mapping[str, Mapping[str, Any]],
    offset: str | None,
    offset_size: int,
) -> list[dict[str, Any]]:
  """Rows of a sweep; the last one has the slopes."""
  rows = [
      {'case': f'{name} {n}', 'sweep': name, 'size': n,
       **measured[f'{name} {n}']}
      for n in sizes
  ]
  for key, title in (
      ('fastest', 'time_slope'), ('temp_mib', 'temp_slope'),
      ('gflop', 'gflop_slope'),
  ):
    lowest = measured[offset][key] if offset else 0.0
    rows[-1][title] = slope(
        [row['size'] - offset_size for row in rows],
        [row[key] - lowest for row in rows],
    )
  return rows


def _layer(features: int, sizes: Mapping[str, int]) -> timing.Compiled:
  adapter = molora.MoLoRA(
      site=layer.SITE, num_experts=sizes['experts'], rank=sizes['rank']
  )
  return layer.Layer(features, sizes['tokens']).adapted(adapter)


def _frozen(features: int, tokens: int) -> timing.Compiled:
  return layer.Layer(features, tokens).case(
      lambda params, kernel, x, key: x @ kernel, {}
  )


def _step(num_layers: int) -> step.Step:
  depth = {
      f't5.T5Config.num_{stack}_layers': num_layers
      for stack in ('encoder', 'decoder')
  }
  return step.Step(
      experiments.build('tiny_t5', 'molora', (128, 32), 8, depth)
  )
