# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft methods`: what each method is on a model."""

import argparse
from collections.abc import Sequence
import dataclasses
import json
import sys
from typing import Any

from moe_peft.cli import flags

_DESCRIPTION = """\
Prints a row for each file of gin/methods: its paper, how many parameters it
trains on a model, whether it becomes part of the weights, the formats that it
leaves in, whether decoders can have it, and how its experts can run. No
parameter is made and nothing is compiled. With --budget each has the largest
size that keeps to it."""
_NOTE = (
    'mergeable: into the weights, exactly; collapsed: with constant weights '
    'only, which changes what it computes (hf export --collapse). exports: '
    'formats of hf export. causal: whether decoders can have it; prompt: there '
    'it routes by the prompt. ways: executions that it has, three or '
    'all_experts alone; empty without a router.'
)

_WIDTH = 110


def main(argv: Sequence[str]) -> int | None:
  """Parses the command line and prints the table."""
  parser = flags.make_parser(
      'moe_peft methods', _DESCRIPTION,
      '--gin_file=configs/quickstart.gin --budget=0.05',
  )
  parser.add_argument(
      'names', nargs='*', metavar='METHOD', help='methods (default: all)'
  )
  parser.add_argument(
      '--budget', type=flags.positive_number, default=None, metavar='N',
      help='parameters to train, or a share of the base below 1',
  )
  parser.add_argument('--json', action='store_true', help='print JSON instead')
  flags.add_gin_flags(parser)
  args = parser.parse_args(argv)
  from moe_peft.checks import overview

  model = _model(args)
  rows = []
  for name in args.names or overview.names():
    if sys.stderr.isatty():
      print(f'\r{name:<24}', end='', file=sys.stderr, flush=True)
    rows.append(overview.row(name, model, args.budget))
  if sys.stderr.isatty():
    print('\r' + 24 * ' ' + '\r', end='', file=sys.stderr)
  if args.json:
    print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
  else:
    _show(rows)
  return None


def _model(args: argparse.Namespace) -> Any:
  """The model that the gin files describe, without adapters."""
  from moe_peft import gin_files

  flags.require_gin_file(args)
  args.gin_file = [*args.gin_file, 'gin/methods/full.gin']  # No adapters yet.
  flags.load_gin(args)
  return gin_files.macro('MODEL')


def _show(rows: Sequence[Any]) -> None:
  import rich.console
  import rich.table

  table = rich.table.Table(box=None, caption=_NOTE, caption_justify='left')
  for name in ('method', 'arXiv', 'trains', 'size', 'mergeable', 'exports',
               'causal', 'ways'):
    justify = 'right' if name == 'trains' else 'left'
    table.add_column(name, justify=justify, no_wrap=True)
  for row in rows:
    if not row.refusal:
      table.add_row(
          row.method, row.arxiv, f'{row.trainable:,}', row.size, row.mergeable,
          row.exports, row.causal, row.executions,
      )
  console = rich.console.Console(highlight=False, markup=False)
  console.width = max(console.width, _WIDTH)  # A file has no width.
  console.print(table)
  for row in rows:
    if row.refusal:
      console.print(f'not here: {row.method}: {row.refusal}')
