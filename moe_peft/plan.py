# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft.plan`: what a run would be, before it costs anything."""

import argparse
import json
from typing import Any, Optional, Sequence

from moe_peft import command_line

_DESCRIPTION = """\
Prints, from the gin files alone, what a run would train and what that takes:
the adapted layers, parameters, bytes of optimizer state and checkpoints,
multiplications of adapters against their layers, the execution that 'auto'
takes, drops at uniform routing, and the mesh. No parameter is made and nothing
is compiled."""


def main(argv: Sequence[str]) -> Optional[int]:
  """Parses the command line and prints the plan."""
  parser = argparse.ArgumentParser(
      prog='python -m moe_peft.plan',
      description=_DESCRIPTION,
      epilog='example: python -m moe_peft.plan '
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
  command_line.add_gin_flags(parser)
  args = parser.parse_args(argv)
  if not args.gin_file:
    parser.error('give at least one --gin_file.')
  from moe_peft.analysis import planning

  plan = planning.make_plan(_load(args), args.devices)
  if args.json:
    print(json.dumps(plan, indent=2))
  else:
    planning.show(plan)
  return None


def _load(args: argparse.Namespace) -> Any:
  """The experiment that the gin files describe."""
  from moe_peft.analysis import planning

  if args.t5x:
    return planning.t5x_subject(
        args.gin_file, args.gin_bindings, args.gin_search_paths
    )
  command_line.load_gin(
      args.gin_file,
      ["MODEL_DIR='unused'", *args.gin_bindings],
      args.gin_search_paths,
  )
  return planning.subject()


if __name__ == '__main__':
  command_line.run(main)
