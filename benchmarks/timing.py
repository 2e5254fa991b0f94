# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing, and what XLA says of a compiled function."""

from collections.abc import Callable, Mapping
import statistics
import time
from typing import Any

import jax

# Runs a case once and returns its seconds.
Case = Callable[[], float]


class Compiled:
  """A compiled function with its arguments; calling it times one call.

  Attributes:
    compiled: What XLA made.
    compile_seconds: How long that took, tracing included.
  """

  def __init__(self, function: Callable[..., Any], *arguments: Any):
    """Compiles `jax.jit(function)`, or what is jitted already.

    Args:
      function: A function of arrays.
      *arguments: Its arguments.
    """
    start = time.perf_counter()
    if not hasattr(function, 'lower'):
      function = jax.jit(function)
    self.compiled = function.lower(*arguments).compile()
    self.compile_seconds = time.perf_counter() - start
    # What lies on the host would be copied in every call.
    self._arguments = jax.device_put(arguments)

  def __call__(self) -> float:
    return warm_seconds_of(lambda: self.compiled(*self._arguments))

  def facts(self) -> dict[str, float]:
    """Returns what `facts` says of `compiled`, and `compile_seconds`."""
    return {**facts(self.compiled), 'compile_seconds': self.compile_seconds}


def seconds_of(function: Callable[[], Any]) -> float:
  """Returns how long a call takes, its results computed."""
  start = time.perf_counter()
  jax.block_until_ready(function())
  return time.perf_counter() - start


def warm_seconds_of(function: Callable[[], Any]) -> float:
  """As `seconds_of`, of a second call after a first one that is not timed.

  The first one's results are waited for: a call only starts the device's work.
  """
  jax.block_until_ready(function())
  return seconds_of(function)


def facts(compiled: Any) -> dict[str, float]:
  """XLA's own account of a compiled function.

  Returns:
    `temp_mib` (temporary memory), `peak_mib` (arguments, results that do not
    lie in donated arguments, and temporary memory) and, where `counts_gflop`,
    `gflop`.
  """
  memory = compiled.memory_analysis()
  peak = (
      memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
      + memory.temp_size_in_bytes
  )
  known = {
      'temp_mib': memory.temp_size_in_bytes / 2**20,
      'peak_mib': peak / 2**20,
  }
  if counts_gflop():
    known['gflop'] = compiled.cost_analysis().get('flops', 0.0) / 1e9
  return known


def counts_gflop() -> bool:
  """Whether XLA counts operations: a GPU's are in calls of libraries."""
  return jax.default_backend() != 'gpu'


def interleave(
    cases: Mapping[str, Case], rounds: int, progress: Callable[[str], None]
) -> dict[str, dict[str, float]]:
  """Times cases in turn, round after round, so that drift hits all alike.

  A case should precede each timed call by an untimed one: where another case
  gave hundreds of MiB back to the system, the next call pays for its pages.

  Args:
    cases: What is timed, by name.
    rounds: Timed calls of each case.
    progress: Told what is being done.

  Returns:
    By name: `seconds` (median) and `fastest` (minimum).
  """
  seconds: dict[str, list[float]] = {name: [] for name in cases}
  for number in range(rounds):
    for name, case in cases.items():
      progress(f'round {number + 1} of {rounds}: {name}')
      seconds[name].append(case())
  return {
      name: {'seconds': statistics.median(values), 'fastest': min(values)}
      for name, values in seconds.items()
  }
