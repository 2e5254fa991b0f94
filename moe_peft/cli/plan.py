# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft plan`: what a run would be, before it costs anything."""

import argparse
from collections.abc import Mapping, Sequence
import json
from typing import Any

import rich.box
import rich.console
import rich.table

from moe_peft import gin_files
from moe_peft.cli import flags

_DESCRIPTION = """\
Prints, from the gin files alone, what a run would train and what that takes:
the adapted layers, parameters, bytes of optimizer state and checkpoints,
multiplications of adapters against their layers, the execution that 'auto'
takes, drops at uniform routing, and the mesh. No parameter is made and nothing
is compiled."""


def main(argv: Sequence[str]) -> int | None:
  """Parses the command line and prints the plan."""
  parser = argparse.ArgumentParser(
      prog='python -m moe_peft plan',
      description=_DESCRIPTION,
      epilog='example: python -m moe_peft plan '
      '--gin_file=configs/quickstart.gin --gin.NUM_EXPERTS=64',
  )
  parser.add_argument(
      '--t5x', action='store_true',
      help='the gin files are those of t5x.train, for example in configs/t0',
  )
  parser.add_argument(
      '--devices', type=int, default=1, help='devices to lay out (default: 1)'
  )
  parser.add_argument('--json', action='store_true', help='print JSON instead')
  flags.add_gin_flags(parser)
  args = parser.parse_args(argv)
  if not args.gin_file:
    parser.error('give at least one --gin_file.')
  from moe_peft.compile import planning

  plan = planning.make_plan(_load(args), args.devices)
  if args.json:
    print(json.dumps(plan, indent=2))
  else:
    show(plan)
  return None


def _load(args: argparse.Namespace) -> Any:
  """The experiment that the gin files describe."""
  if args.t5x:
    from moe_peft.t5x import planning as t5x_planning

    return t5x_planning.subject(
        args.gin_file, args.gin_bindings, args.gin_search_paths
    )
  from moe_peft.compile import planning

  gin_files.load_gin(
      args.gin_file,
      ["MODEL_DIR='unused'", *args.gin_bindings],
      args.gin_search_paths,
  )
  return planning.subject()


def show(plan: Mapping[str, Any]) -> None:
  """Prints a plan as tables."""
  console = rich.console.Console(highlight=False)
  counts, sizes = plan['parameters'], plan['bytes']
  console.print(
      f'{counts["trainable"]:,} of {counts["total"]:,} parameters train '
      f'({100 * counts["trainable"] / counts["total"]:.3f} %): '
      + ', '.join(
          f'{name} {n:,}' for name, n in counts['trainable_by_group'].items()
      )
  )
  console.print(
      ', '.join(f'{name} {_bytes(n)}' for name, n in sizes.items())
  )
  mesh = ' x '.join(f'{name} {n}' for name, n in plan['mesh'].items())
  console.print(
      f'mesh: {mesh}; {plan["rows_per_data_partition"]} rows of a microbatch '
      'for each data partition'
  )
  table = rich.table.Table(
      box=rich.box.SIMPLE,
      caption='parameters: of a site in one layer. cost: multiplications per '
      'token, all experts on every token, as a share of those of the layer. '
      'drops: share of choices while training, if experts are equally likely.'
  )
  table.add_column('sites')
  for name in ('layers', 'experts', 'parameters', 'cost', 'drops'):
    table.add_column(name, justify='right', no_wrap=True)
  for row in plan['sites']:
    frozen = row['frozen_multiplications']
    table.add_row(
        f'{row["block"]}: {" ".join(row["sites"])} '
        f'({row["adapter"]}, {row["execution"]})',
        str(row['layers']),
        str(row['experts']),
        f'{row["parameters"]:,}',
        f'{100 * row["parameters"] / frozen:.1f} %' if frozen else '',
        f'{100 * row["drops"]:.1f} %' if row['drops'] else '',
    )
  console.print(table)


def _bytes(number: int) -> str:
  for unit in ('B', 'KiB', 'MiB'):
    if number < 1024:
      return f'{number:,.0f} {unit}' if unit == 'B' else f'{number:,.1f} {unit}'
    number /= 1024
  return f'{number:,.1f} GiB'
