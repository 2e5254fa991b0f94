# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks`: prints tables and writes them as JSON."""

import argparse
import json
import os
from pathlib import Path
import sys
from typing import Optional, Sequence


def main(argv: Sequence[str]) -> Optional[int]:
  """Parses the command line and runs the tables."""
  parser = argparse.ArgumentParser(
      prog='python -m benchmarks',
      description='Times one adapted layer against its peers, forward and '
      'backward. Cases take turns; read the ratios, not the times.',
  )
  parser.add_argument('--quick', action='store_true', help='fewer rounds')
  parser.add_argument(
      '--threads', type=int, default=1, help='CPU threads (default: 1)'
  )
  parser.add_argument(
      '--out', type=Path, default=Path('runs/benchmarks'),
      help='folder for layer.json (default: runs/benchmarks)',
  )
  args = parser.parse_args(argv)
  # Before JAX starts: XLA's thread pool is as large as the affinity mask.
  if hasattr(os, 'sched_setaffinity'):
    available = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, available[: args.threads])

  import jax

  from benchmarks import layer
  from benchmarks import timing

  device = jax.devices()[0]
  tables = []
  for features, tokens, num_experts, rank in (
      ((1024, 2048, 10, 4),) if args.quick else
      ((1024, 2048, 10, 4), (768, 2048, 8, 16), (1024, 4096, 32, 4))
  ):
    title = (
        f'features {features}, tokens {tokens}, E {num_experts}, r {rank}, '
        f'float32, {args.threads} thread(s), {device.device_kind}'
    )
    print(f'\n{title}', file=sys.stderr)
    results = timing.measure(
        layer.cases(features, tokens, num_experts, rank),
        rounds=7 if args.quick else 21,
        progress=lambda text: print(f'\r{text:<60}', end='', file=sys.stderr),
    )
    print(file=sys.stderr)
    print(f'\n{title}\n\n{_table(results, layer.FROZEN, layer.PLAIN_LORA)}')
    tables.append({'title': title, 'results': results})
  args.out.mkdir(parents=True, exist_ok=True)
  (args.out / 'layer.json').write_text(json.dumps(tables, indent=1) + '\n')
  return None


def _table(results, frozen: str, plain_lora: str) -> str:
  """Markdown; ratios are of fastest times, which drift least."""
  lines = [
      '| case | ms, median | fastest | / frozen | / LoRA | temp MiB | GFLOP |',
      '|---|--:|--:|--:|--:|--:|--:|',
  ]
  for name, row in results.items():
    lines.append(
        f'| {name} | {row["milliseconds"]:.0f} | {row["fastest"]:.0f} | '
        f'{row["fastest"] / results[frozen]["fastest"]:.2f} | '
        f'{row["fastest"] / results[plain_lora]["fastest"]:.2f} | '
        f'{row["temp_mib"]:.0f} | {row["gflop"]:.2f} |'
    )
  return '\n'.join(lines)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
