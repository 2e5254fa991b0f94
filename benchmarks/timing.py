# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing of compiled functions, and their memory."""

import dataclasses
import statistics
import time
from typing import Any, Callable, Mapping

import jax


@dataclasses.dataclass(frozen=True)
class Case:
  """A function to be timed.

  Attributes:
    function: Called as `function(*arguments)`; is compiled.
    arguments: Arrays.
  """

  function: Callable[..., Any]
  arguments: tuple[Any, ...]


def measure(
    cases: Mapping[str, Case], rounds: int, progress: Callable[[str], None]
) -> dict[str, dict[str, float]]:
  """Times cases in turn, round after round, so that drift hits all alike.

  Each timed call follows an untimed one of the same case: a case that gives
  hundreds of MiB back to the system would make the next one pay for its pages.

  Args:
    cases: What is timed, by name.
    rounds: Timed calls of each case.
    progress: Told what is being done.

  Returns:
    By name: `milliseconds` (median), `fastest` (minimum), `temp_mib` (XLA's
    temporary memory) and `gflop` (XLA's count).
  """
  compiled = {}
  for name, case in cases.items():
    progress(f'compile {name}')
    compiled[name] = jax.jit(case.function).lower(*case.arguments).compile()
  seconds: dict[str, list[float]] = {name: [] for name in cases}
  for number in range(rounds):
    progress(f'round {number + 1} of {rounds}')
    for name, case in cases.items():
      jax.block_until_ready(compiled[name](*case.arguments))
      start = time.perf_counter()
      jax.block_until_ready(compiled[name](*case.arguments))
      seconds[name].append(time.perf_counter() - start)
  return {
      name: {
          'milliseconds': 1e3 * statistics.median(values),
          'fastest': 1e3 * min(values),
          'temp_mib': compiled[name].memory_analysis().temp_size_in_bytes
          / 2**20,
          'gflop': compiled[name].cost_analysis().get('flops', 0.0) / 1e9,
      }
      for name, values in seconds.items()
  }
