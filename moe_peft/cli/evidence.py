# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft evidence`: a page of the results of all studies."""

from collections.abc import Sequence
from pathlib import Path

from moe_peft import atomic
from moe_peft.cli import flags

_DESCRIPTION = """\
Writes one Markdown page of a folder with the --results of studies: for each its
plot, and every method with its means, and its difference to a reference with
the 95 % interval; for claims, their table of outcomes."""


def main(argv: Sequence[str]) -> None:
  """Parses the command line and writes the page."""
  parser = flags.make_parser(
      'moe_peft evidence', _DESCRIPTION, 'results --out docs/evidence.md'
  )
  parser.add_argument(
      'results', type=Path, metavar='FOLDER',
      help='holds a folder with results.json for each study',
  )
  parser.add_argument(
      '--out', type=flags.output_file('.md'), required=True, metavar='FILE'
  )
  parser.add_argument(
      '--reference', default='lora', metavar='NAME',
      help='gin file with which the others are compared (default: lora)',
  )
  parser.add_argument(
      '--without', action='append', default=[], metavar='TASK',
      help='adds a mean that leaves out this task; may be repeated',
  )
  args = parser.parse_args(argv)
  # Importing NumPy would slow --help down.
  from moe_peft.study import evidence

  page = evidence.page(
      args.results, args.reference, args.without, args.out.parent
  )
  args.out.parent.mkdir(parents=True, exist_ok=True)
  atomic.write(args.out, page)
