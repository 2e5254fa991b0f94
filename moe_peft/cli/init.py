# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft init`: a gin file for a first run on own rows."""

from collections.abc import Sequence
from pathlib import Path

from moe_peft import gin_files
from moe_peft.cli import flags

_DESCRIPTION = """\
Reads the rows, measures how long they are and what fits into this machine, and
writes one gin file with comments, and the command that trains it."""


def main(argv: Sequence[str]) -> int | None:
  """Parses the command line, writes the file, prints the command."""
  args = _parser().parse_args(argv)
  flags.show_notes()
  gin_files.import_tensorflow()
  from moe_peft.compile import first_run

  command = first_run.write(
      args.base, args.data, args.method, args.out, args.force
  )
  print(f'{args.out}: written. Look at the rows, then train:')
  print(f'  {command.replace(" train ", " data show ")}')
  print(f'  {command}')
  return None


def _parser() -> flags.Parser:
  parser = flags.make_parser(
      'moe_peft init', _DESCRIPTION,
      '--base bases/tiny_t5 --data my.jsonl --method molora --out my_run.gin',
  )
  parser.add_argument(
      '--base', type=Path, required=True, metavar='DIR',
      help='base, as `hf import` writes it, or bases/tiny_t5',
  )
  parser.add_argument(
      '--data', required=True, metavar='FILE',
      help='rows: .jsonl, .json, .parquet, .csv, a folder of the library '
      'datasets, or a pattern',
  )
  parser.add_argument(
      '--method', default='molora', metavar='NAME',
      help='a file of gin/methods/ (default: molora)',
  )
  parser.add_argument(
      '--out', type=flags.output_file('.gin'), required=True, metavar='FILE',
      help='the gin file to write',
  )
  parser.add_argument(
      '--force', action='store_true', help='replace the file if it exists'
  )
  return parser
