# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What runs in the process of a table."""

from collections.abc import Mapping, Sequence
import importlib
import os
import sys
from typing import Any


def restrict(cpus: Sequence[int]) -> None:
  """Keeps this process to some CPUs; to be called before JAX starts."""
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, cpus)


def on_cpus() -> bool:
  """Whether JAX has no accelerator."""
  import jax

  return jax.default_backend() == 'cpu'


def run(name: str, args: Mapping[str, Any], threads: int) -> None:
  """Runs, prints and writes the tables of one module.

  Args:
    name: Name of the module.
    args: Arguments of the command line.
    threads: Number of CPUs.
  """
  import absl.logging

  from benchmarks import plots
  from benchmarks import tables
  from moe_peft import gin_files

  absl.logging.set_verbosity(absl.logging.ERROR)
  gin_files.import_tensorflow()
  suffix = f'_{threads}_threads' if name == 'layer' and on_cpus() else ''
  finished = []
  for table in importlib.import_module(f'benchmarks.{name}').run(
      tables.Options(
          args['quick'], threads, args['peer_python'], args['minutes'],
          args['out'], args['experiment'],
      ),
      lambda text: print(f'\r{name}: {text:<60.60}', end='', file=sys.stderr),
  ):
    finished.append(table)
    tables.save(finished, args['out'] / f'{name}{suffix}.json')
    print(f'\r{"":<75}\r', end='', file=sys.stderr)
    print(f'\n{table.markdown()}', flush=True)
    part = f'_{len(finished)}' if name == 'layer' else ''
    plots.save(table, args['out'] / f'{table.name}{suffix}{part}.png')
