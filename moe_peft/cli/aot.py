# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft aot`: a training step compiled for TPUs, without one."""

import argparse
from collections.abc import Mapping, Sequence
import json
import os
from pathlib import Path
from typing import Any

import rich.box
import rich.console
import rich.table

from moe_peft import gin_files
from moe_peft.cli import flags

_DESCRIPTION = """\
Compiles the training step that gin files of moe_peft.train describe for slices
of TPUs, with their compiler and without a TPU, and prints what one device
holds, computes and exchanges. No parameter is made: the base checkpoint is not
needed. Nothing is run: memory and program are the compiler's, FLOPs and bytes
are counted in its program, times are bounds from published peaks."""

# Printed on one line each, as wide as the terminal.
_NOTES = (
    'Nothing was run or measured: all of this is what the TPU compiler says.',
    'memory: GiB of HBM of one device. other: batch, padding of layouts, '
    'outputs that are not donated, code.',
    'TFLOP, sent: products that one device computes in a step, and bytes of '
    'the arrays that it exchanges, with the trips of loops. share: of these, '
    "the adapters' part, told by the names of scopes in the program.",
    'bound: the least time of a step by the published peaks of the chips: '
    'products in bfloat16; all links of a chip sending at once, in rings; '
    'parameters and optimizer state read once; none waiting for another.',
)

_MIB = 2**20


def main(argv: Sequence[str]) -> int | None:
  """Parses the command line, compiles and prints.

  Returns:
    Exit status: 1 if something does not fit.
  """
  parser = argparse.ArgumentParser(
      prog='python -m moe_peft aot',
      description=_DESCRIPTION,
      epilog='example: python -m moe_peft aot '
      '--gin_file=configs/aot/t5_1_1_xl_molora_10.gin --topology=v5e-16',
  )
  parser.add_argument(
      '--topology', action='append', required=True, metavar='NAME',
      help='slice to compile for, for example v5e-256; may be repeated',
  )
  parser.add_argument(
      '--execution', action='append', metavar='NAME',
      help='execution of the experts instead of the one in the gin files: '
      'all_experts, einsum or ragged; may be repeated',
  )
  parser.add_argument('--json', type=Path, help='also write a file of JSON')
  parser.add_argument(
      '--hlo', type=Path, metavar='DIR',
      help='keep the compiled programs (HloModuleProto), for other tools',
  )
  flags.add_gin_flags(parser)
  args = parser.parse_args(argv)
  if not args.gin_file:
    parser.error('give at least one --gin_file.')
  # A TPU of this machine is not needed, and another program may hold it.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  from moe_peft.compile import topologies

  slices = [topologies.find(name) for name in args.topology]
  slices[0].devices()  # Says at once if the compiler is missing.
  gin_files.load_gin(
      args.gin_file,
      ["MODEL_DIR='unused'", *args.gin_bindings],
      args.gin_search_paths,
  )
  reports = []
  for topology in slices:
    for execution in args.execution or [None]:
      reports.append(_compile(topology, execution, args.hlo))
      show(reports[-1])
      if args.json:  # After each: a slice of hundreds of chips takes minutes.
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(reports, indent=2) + '\n')
  show_summary(reports)
  return None if all(report['fits'] for report in reports) else 1


def _compile(topology: Any, execution: str | None, folder: Path | None):
  from moe_peft.compile import compiled
  from moe_peft.training import run

  experiment = run.build()
  if execution is not None:
    experiment = compiled.with_execution(experiment, execution)

  def keep(program: bytes) -> None:
    if folder is not None:
      folder.mkdir(parents=True, exist_ok=True)
      name = f'{topology.name}_{execution or "configured"}.hlo.pb'
      (folder / name).write_bytes(program)

  report = compiled.make_report(experiment, topology, keep)
  return {'execution': execution or 'configured'} | report


def show(report: Mapping[str, Any]) -> None:
  """Prints all of one report."""
  console = rich.console.Console(highlight=False)
  mesh = ' x '.join(f'{name} {n}' for name, n in report['mesh'].items())
  choices = ', '.join(
      f'{name.upper()} {report[name]}'
      for name in ('batch_size', 'num_microbatches', 'base_dtype',
                   'activation_dtype', 'scan_layers', 'remat_policy')
  )
  console.print(
      f'{report["topology"]} ({report["chips"]} chips), mesh {mesh}, execution '
      f'{report["execution"]}; {choices}'
  )
  if 'error' in report:
    console.print(f'The compiler refuses it: {report["error"]}')
    return
  compile_time, memory = report['compile'], report['memory']
  console.print(
      f'compiled in {compile_time["seconds"]} s ({compile_time["cpu_seconds"]} '
      's of CPU)'
  )
  table = _table('HBM of one device', 'MiB')
  for kind, size in memory['by_kind'].items():
    table.add_row(kind, f'{size / _MIB:,.1f}')
  table.add_row('together', f'{memory["total"] / _MIB:,.1f}')
  table.add_row('limit', f'{memory["limit"] / _MIB:,.1f}')
  console.print(table)
  console.print(
      f'donated: {memory["aliased"] / _MIB:,.1f} of '
      f'{memory["state"] / _MIB:,.1f} MiB of adapters and optimizer state '
      f'(replicated they would be {memory["replicated_state"] / _MIB:,.1f})'
  )
  _show_collectives(console, report)
  uncounted = report['not_counted']
  if uncounted['loops of unknown length']:
    console.print(
        'loops of unknown length, counted once: '
        + ', '.join(uncounted['loops of unknown length'])
    )
  if uncounted['custom calls']:
    console.print(f'custom calls, not counted: {uncounted["custom calls"]}')


def _show_collectives(console, report) -> None:
  """Prints what devices exchange."""
  exchanged = report['collectives']
  table = _table('collectives', 'count', 'MiB', 'of adapters')
  for kind, row in exchanged['by_kind'].items():
    table.add_row(
        kind, f'{row["count"]:,}', f'{row["bytes"] / _MIB:,.1f}',
        _percent(row['adapters'], row['bytes']),
    )
  console.print(table)
  table = _table('largest arrays', 'devices', 'count', 'MiB')
  for row in exchanged['largest']:
    table.add_row(
        f'{row["kind"]} {row["array"]} of {row["of"]}',
        str(row['group_size']), f'{row["count"]:,}',
        f'{row["bytes"] / _MIB:,.1f}',
    )
  console.print(table)
  moved = report['kernel_sized_collectives']
  console.print(
      'collectives of the shape of a frozen kernel: '
      + (', '.join(f'{name} {n}' for name, n in moved.items()) or 'none')
  )


def show_summary(reports: Sequence[Mapping[str, Any]]) -> None:
  """Prints a row for each report, as Markdown."""
  console = rich.console.Console(highlight=False, width=200)
  table = rich.table.Table(box=rich.box.MARKDOWN)
  for name in ('slice', 'mesh', 'execution'):
    table.add_column(name, no_wrap=True)
  for name in (
      'base', 'adapters', 'optimizer', 'temp.', 'other', 'together',
      'limit (GiB)', 'TFLOP', 'share', 'sent MiB', 'share', 'bound s',
      'compile s',
  ):
    table.add_column(name, justify='right', no_wrap=True)
  for report in reports:
    table.add_row(*_summary_row(report))
  console.print(table)
  for note in _NOTES:
    console.print(note, width=80)


def _summary_row(report: Mapping[str, Any]) -> list[str]:
  head = [
      report['topology'],
      ' x '.join(str(n) for n in report['mesh'].values()),
      report['execution'],
  ]
  if 'error' in report:
    return head + ['too large']
  gib = lambda size: f'{size / 2**30:.2f}'
  memory = report['memory']
  kinds = dict(memory['by_kind'])
  main_kinds = [
      kinds.pop(name)
      for name in ('frozen base', 'adapters', 'optimizer', 'temporaries')
  ]
  flops, exchanged = report['flops'], report['collectives']
  roofline = report['roofline']
  return head + [gib(size) for size in main_kinds] + [
      gib(sum(kinds.values())),
      gib(memory['total']),
      gib(memory['limit']),
      f'{flops["per_device"] / 1e12:.2f}',
      _percent(flops['adapters'], flops['per_device']),
      f'{exchanged["bytes"] / _MIB:,.0f}',
      _percent(exchanged['adapters'], exchanged['bytes']),
      f'{max(roofline["seconds"].values()):.3f} {roofline["bound"]}',
      f'{report["compile"]["seconds"]:.0f}',
  ]


def _table(name: str, *columns: str) -> rich.table.Table:
  table = rich.table.Table(box=rich.box.SIMPLE)
  table.add_column(name)
  for column in columns:
    table.add_column(column, justify='right', no_wrap=True)
  return table


def _percent(part: float, whole: float) -> str:
  return f'{100 * part / whole:.1f} %' if whole else ''
