# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What has to be waited for: imports, `--help`, the first training step."""

from collections.abc import Callable, Mapping, Sequence
import os
import subprocess
import sys
import tempfile
import time

from benchmarks import devices
from benchmarks import tables
from benchmarks import timing
from moe_peft import errors
from moe_peft import gin_files

JAX_FLAX = 'import jax, flax.linen, optax'
COLUMNS = (
    tables.Column('seconds', 's, median'),
    tables.Column('fastest', 'fastest'),
    tables.Column('beyond_jax', 'beyond JAX and Flax'),
)
IMPORTS = {
    'JAX, Flax and Optax alone': JAX_FLAX,
    'import moe_peft': f'{JAX_FLAX}\nimport moe_peft',
    'the same with all of its core': (
        f'{JAX_FLAX}\n'
        'from moe_peft.core import inject, trainable, partitioning\n'
        'from moe_peft.methods import molora, mov, sira\n'
        'from moe_peft.models import t5, encoder_decoder'
    ),
}
# As training does it, without evaluations.
FIRST_STEP = """\
import jax
from moe_peft import gin_files
gin_files.load_gin(['configs/quickstart.gin'], ["MODEL_DIR='unused'"])
from moe_peft.training import compilation
from moe_peft.training import experiment, loop, run, train_step
compilation.use_cache()
setup = experiment.prepare(run.build())
data = loop.train_data(setup.experiment)
state = train_step.init_state(setup)
with setup.context():
  step_fn = train_step.make_train_step(setup)
  state, metrics = step_fn(state, setup.frozen, next(data))
jax.block_until_ready(metrics)
"""


def run(
    options: tables.Options, progress: Callable[[str], None]
) -> list[tables.Table]:
  """One table, each case a process of its own; quick: no first step."""
  if options.quick:
    return [measure(1, options, progress, first_step=None)]
  return [measure(9, options, progress)]


def measure(
    rounds: int,
    options: tables.Options,
    progress: Callable[[str], None],
    first_step: str | None = FIRST_STEP,
) -> tables.Table:
  """One table.

  Args:
    rounds: Processes of each case; for the first step a third of that.
    options: Options of the command line.
    progress: Told what is being done.
    first_step: Source of a program that ends with its first step, or None.
  """
  cases = {name: process('-c', source) for name, source in IMPORTS.items()}
  cases['python -m moe_peft.train --help'] = process(
      '-m', 'moe_peft.train', '--help'
  )
  seconds = timing.interleave(cases, rounds, progress)
  if first_step is not None:
    seconds |= _first_steps(first_step, max(rounds // 3, 1), progress)
  rows = [{'case': name, **of_case} for name, of_case in seconds.items()]
  for row in rows[1 : len(IMPORTS)]:
    row['beyond_jax'] = row['fastest'] - rows[0]['fastest']
  return tables.Table(
      'startup',
      f'Start-up: whole processes, configs/quickstart.gin, '
      f'{devices.describe(options.threads)}',
      COLUMNS, rows,
  )


def _first_steps(
    source: str, rounds: int, progress: Callable[[str], None]
) -> dict[str, dict[str, float]]:
  """Times a program once without and then with a warm compilation cache."""
  with tempfile.TemporaryDirectory() as folder:
    cache = {
        'JAX_COMPILATION_CACHE_DIR': folder,
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    step = process('-c', source, environment=cache)
    cold, warm = 'first step, nothing cached', 'first step, warm compile cache'
    seconds = timing.interleave({cold: step}, 1, progress)
    return seconds | timing.interleave({warm: step}, rounds, progress)


def process(
    *arguments: str, environment: Mapping[str, str] | None = None
) -> timing.Case:
  """A case: a Python process from its start to its end.

  Args:
    *arguments: Arguments of the interpreter.
    environment: Variables to add.
  """

  def case() -> float:
    start = time.perf_counter()
    _check(arguments, environment or {})
    return time.perf_counter() - start

  return case


def _check(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
  done = subprocess.run(
      [sys.executable, *arguments],
      env={**os.environ, **environment},
      cwd=gin_files.PACKAGE_DIR.parent,
      capture_output=True,
      text=True,
  )
  if done.returncode:
    raise errors.UserError(
        f'The process failed: {done.stderr[-500:]}',
        f'python {" ".join(arguments)[:60]}',
    )
