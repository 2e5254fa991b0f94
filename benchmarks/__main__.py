# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks`: prints tables, writes them as JSON and as plots.

Nothing here imports JAX: each table runs in a process of its own, with as many
CPUs as it may use. XLA's thread pool is as large as the affinity mask.
"""

from collections.abc import Callable, Sequence
from concurrent import futures
import multiprocessing
import os
from pathlib import Path
import subprocess
from typing import Any

from benchmarks import tables
from benchmarks import worker
from moe_peft import errors
from moe_peft.cli import flags

# Modules of this package, each with `run(options, progress)`, which gives
# tables one by one.
TABLES = {
    'layer': 'one adapted layer: executions, methods, peers; 1 and 2 threads',
    'bank': 'one layer under a bank of 64 experts against LoRA of rank 512',
    'step': 'a training step: T5, and a decoder alone',
    'scaling': 'time and memory against tokens, experts, rank, layers',
    'checkpoint': 'bytes and seconds, adapters alone and everything',
    'decode': 'tokens per second, greedy and beams',
    'input': 'the data path against the step',
    'startup': 'imports, --help, the first step',
    'quantized': 'what a base loses in bfloat16, int8 and nf4',
    'card': 'bfloat16 on one accelerator against PEFT, if it is named',
}

_PEER_PACKAGES = ['torch', 'transformers', 'peft']


def main(argv: Sequence[str]) -> int | None:
  """Parses the command line and runs the tables."""
  parser = flags.make_parser(
      'benchmarks',
      'Measures speed and memory. Cases of a table take turns: read the '
      'ratios, not the times. Tables: '
      + '; '.join(f'{name}: {text}' for name, text in TABLES.items()),
      '--quick --only layer',
  )
  parser.add_argument(
      '--only', nargs='+', choices=TABLES,
      default=[name for name in TABLES if name not in ('quantized', 'card')],
      metavar='TABLE', help='tables to run (default: all but the last two)',
  )
  parser.add_argument(
      '--quick', action='store_true',
      help='small shapes, few cases and rounds',
  )
  parser.add_argument(
      '--threads', type=flags.whole_number(1), metavar='N',
      help='CPU threads (default: all; for `layer` on CPUs one, then two)',
  )
  parser.add_argument(
      '--peer_python', metavar='PATH',
      help='interpreter of an environment with the PyTorch peers',
  )
  parser.add_argument(
      '--minutes', type=flags.positive_number, default=8.0, metavar='M',
      help='time that `card` takes at most (default: 8)',
  )
  parser.add_argument(
      '--experiment', default=tables.Options.experiment, metavar='FILE',
      help='gin file whose base and rows `quantized` takes (default: '
      f'{tables.Options.experiment})',
  )
  parser.add_argument(
      '--out', type=Path, default=Path('runs/benchmarks'),
      help='folder for JSON and plots (default: runs/benchmarks)',
  )
  args = parser.parse_args(argv)
  if args.peer_python:
    _check_interpreter(args.peer_python)
  args.out.mkdir(parents=True, exist_ok=True)
  available = _cpus()
  for name in args.only:
    counts = [args.threads or len(available)]
    if name == 'layer' and not args.threads:
      if _run_apart(available, worker.on_cpus):
        counts = [1] if args.quick else [1, 2]
    for threads in counts:
      cpus = available[:threads]
      _run_apart(cpus, worker.run, name, vars(args), len(cpus))
  return None


def _check_interpreter(path: str) -> None:
  """Refuses what is no Python with the packages of the peers."""
  code = (
      'import importlib.util as u\n'
      f'print([x for x in {_PEER_PACKAGES} if not u.find_spec(x)])'
  )
  try:
    lacks = subprocess.run(
        [path, '-I', '-c', code], capture_output=True, text=True, timeout=60,
        check=True,
    ).stdout.strip()
  except (OSError, subprocess.SubprocessError, ValueError):
    lacks = 'Python'
  if lacks != '[]':
    raise errors.UserError(
        f'The interpreter {path} lacks {lacks}.', '--peer_python',
        'Without the flag the tables say how its environment is made.',
    )


def _cpus() -> list[int]:
  if hasattr(os, 'sched_getaffinity'):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def _run_apart(
    cpus: list[int], function: Callable[..., Any], *arguments: Any
) -> Any:
  """What a function returns in a process of its own, kept to some CPUs."""
  with futures.ProcessPoolExecutor(
      1,
      multiprocessing.get_context('spawn'),
      initializer=worker.restrict,
      initargs=(cpus,),
  ) as pool:
    return pool.submit(function, *arguments).result()


if __name__ == '__main__':
  flags.run(main)
