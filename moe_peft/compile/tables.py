# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is printed of plans and of compiled steps."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import rich.box
import rich.console
import rich.table

_MIB = 2**20
_BYTES = ('B', 'KiB', 'MiB', 'GiB')
_CHOICES = (
    'batch_size', 'num_microbatches', 'packing', 'base_dtype',
    'activation_dtype', 'scan_layers', 'remat_policy', 'attention',
)
_SUMMARY = (
    'slice', 'mesh', 'execution', 'base', 'adapters', 'optimizer', 'temp.',
    'other', 'together', 'limit (GiB)', 'TFLOP', 'share', 'sent MiB', 'share',
    'bound s', 'compile s',
)

# Notes under a table; each is printed on one line, as wide as the terminal.
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
_PLAN_NOTE = (
    'parameters: of a site in one layer. cost: multiplications per token, all '
    'experts on every token, as a share of those of the layer. drops: share of '
    'choices while training, if experts are equally likely.'
)


def show_plan(plan: Mapping[str, Any]) -> None:
  """Prints what `planning.make_plan` returns."""
  console = rich.console.Console(highlight=False)
  counts = plan['parameters']
  console.print(
      f'{counts["trainable"]:,} of {counts["total"]:,} parameters train '
      f'({100 * counts["trainable"] / counts["total"]:.3f} %): '
      + ', '.join(
          f'{name} {n:,}' for name, n in counts['trainable_by_group'].items()
      )
  )
  console.print(
      ', '.join(f'{name} {_bytes(n)}' for name, n in plan['bytes'].items())
  )
  console.print(
      f'mesh: {_mesh(plan)}; {plan["rows_per_data_partition"]} rows of a '
      'microbatch for each data partition'
  )
  if 'memory' in plan:
    console.print(f'memory of a step by REMAT_POLICY: {plan["memory"]}')
  table = _table('sites', 'layers', 'experts', 'parameters', 'cost', 'drops')
  table.caption = _PLAN_NOTE
  for row in plan['sites']:
    table.add_row(
        f'{row["block"]}: {" ".join(row["sites"])} '
        f'({row["adapter"]}, {row["execution"]})',
        str(row['layers']),
        str(row['experts']),
        f'{row["parameters"]:,}',
        _percent(row['parameters'], row['frozen_multiplications']),
        _percent(row['drops'], 1) if row['drops'] else '',
    )
  console.print(table)


def show_report(report: Mapping[str, Any]) -> None:
  """Prints all of what `compiled.make_report` returns for one slice."""
  console = rich.console.Console(highlight=False)
  choices = ', '.join(f'{name.upper()} {report[name]}' for name in _CHOICES)
  console.print(
      f'{report["topology"]} ({report["chips"]} chips), mesh {_mesh(report)}, '
      f'execution {report["execution"]}; {choices}'
  )
  if 'error' in report:
    console.print(f'The compiler refuses it: {report["error"]}')
    return
  seconds, memory = report['compile'], report['memory']
  console.print(
      f'compiled in {seconds["seconds"]} s ({seconds["cpu_seconds"]} s of CPU)'
  )
  table = _table('HBM of one device', 'MiB')
  kinds = memory['by_kind'] | {
      'together': memory['total'], 'limit': memory['limit']
  }
  for kind, size in kinds.items():
    if size is not None:
      table.add_row(kind, _mib(size))
  console.print(table)
  console.print(
      f'donated: {_mib(memory["aliased"])} of {_mib(memory["state"])} MiB; '
      'adapters and optimizer state, replicated, would be '
      f'{_mib(memory["replicated_state"])}'
  )
  _show_collectives(console, report)
  uncounted = report['not_counted']
  if loops := uncounted['loops of unknown length']:
    console.print(f'loops of unknown length, counted once: {", ".join(loops)}')
  if uncounted['custom calls']:
    console.print(f'custom calls, not counted: {uncounted["custom calls"]}')


def _show_collectives(console, report: Mapping[str, Any]) -> None:
  """Prints what devices exchange."""
  exchanged = report['collectives']
  table = _table('collectives', 'count', 'MiB', 'of adapters')
  for kind, row in exchanged['by_kind'].items():
    table.add_row(
        kind, f'{row["count"]:,}', _mib(row['bytes']),
        _percent(row['adapters'], row['bytes']),
    )
  console.print(table)
  table = _table('largest arrays', 'devices', 'count', 'MiB')
  for row in exchanged['largest']:
    table.add_row(
        f'{row["kind"]} {row["array"]} of {row["of"]}',
        str(row['group_size']), f'{row["count"]:,}', _mib(row['bytes']),
    )
  console.print(table)
  moved = report['kernel_sized_collectives']
  console.print(
      'collectives of the shape of a frozen kernel: '
      + (', '.join(f'{name} {n}' for name, n in moved.items()) or 'none')
  )


def show_summary(reports: Sequence[Mapping[str, Any]]) -> None:
  """Prints a row for each report, as Markdown."""
  console = rich.console.Console(highlight=False, markup=False, width=200)
  table = _table(*_SUMMARY, num_left=3, box=rich.box.MARKDOWN)
  for report in reports:
    table.add_row(*summary_row(report))
  console.print(table)
  for note in _NOTES:
    console.print(note, width=80)


def summary_row(report: Mapping[str, Any]) -> Iterable[str]:
  """The cells of a report; raises whatever a mapping of another form does."""
  sizes = ' x '.join(str(n) for n in report['mesh'].values())
  names = (report.get('experiment'), report['topology'])
  head = [', '.join(filter(None, names)), sizes, report['execution']]
  if 'error' in report:
    return head + ['too large']
  memory = report['memory']
  kinds = dict(memory['by_kind'])
  named = [
      kinds.pop(name)
      for name in ('frozen base', 'adapters', 'optimizer', 'temporaries')
  ]
  sizes = [*named, sum(kinds.values()), memory['total'], memory['limit']]
  flops, exchanged = report['flops'], report['collectives']
  roofline = report['roofline']
  return head + [_gib(size) for size in sizes] + [
      f'{flops["per_device"] / 1e12:.2f}',
      _percent(flops['adapters'], flops['per_device']),
      f'{exchanged["bytes"] / _MIB:,.0f}',
      _percent(exchanged['adapters'], exchanged['bytes']),
      f'{max(roofline["seconds"].values()):.3f} {roofline["bound"]}'
      if roofline else '',
      f'{report["compile"]["seconds"]:.0f}',
  ]


def _table(
    *columns: str, num_left: int = 1, box: rich.box.Box = rich.box.SIMPLE
) -> rich.table.Table:
  """A table whose columns are right-aligned, the first ones excepted."""
  table = rich.table.Table(box=box)
  for number, column in enumerate(columns):
    justify = 'left' if number < num_left else 'right'
    table.add_column(column, justify=justify, no_wrap=number > 0)
  return table


def _mesh(values: Mapping[str, Any]) -> str:
  return ' x '.join(f'{name} {n}' for name, n in values['mesh'].items())


def _percent(part: float, whole: float) -> str:
  return f'{100 * part / whole:.1f} %' if whole else ''


def _gib(size: float | None) -> str:
  return '' if size is None else f'{size / 2**30:.2f}'


def _mib(size: float) -> str:
  return f'{size / _MIB:,.1f}'


def _bytes(number: float) -> str:
  for unit in _BYTES:
    if number < 1024 or unit == _BYTES[-1]:
      break
    number /= 1024
  return f'{number:,.0f} {unit}' if unit == 'B' else f'{number:,.1f} {unit}'
