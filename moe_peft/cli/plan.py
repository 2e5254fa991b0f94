# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft plan`: what a run would be, before it costs anything."""

import argparse
from collections.abc import Sequence
import json
from typing import Any

from moe_peft.cli import flags

_DESCRIPTION = """\
Prints, from the gin files alone, what a run would train and what that takes:
the adapted layers, parameters, bytes of optimizer state and checkpoints,
multiplications of adapters against their layers, the execution that 'auto'
takes, drops at uniform routing, and the mesh. No parameter is made, and without
--memory nothing is compiled."""


def main(argv: Sequence[str]) -> int | None:
  """Parses the command line and prints the plan."""
  parser = _parser()
  args = parser.parse_args(argv)
  flags.require_gin_file(args)
  from moe_peft.compile import planning
  from moe_peft.compile import tables

  if args.memory and args.t5x:
    parser.error('--memory is for the files of moe_peft.train')
  plan = planning.make_plan(_load(args), args.devices)
  if args.memory:
    plan['memory'] = _memory()
  if args.json:
    print(json.dumps(plan, indent=2))
  else:
    tables.show_plan(plan)
  return None


def _parser() -> flags.Parser:
  parser = flags.make_parser(
      'moe_peft plan',
      _DESCRIPTION,
      '--gin_file=configs/quickstart.gin --gin.NUM_EXPERTS=64',
  )
  parser.add_argument(
      '--t5x', action='store_true',
      help='the gin files are those of t5x.train, for example in configs/t0',
  )
  parser.add_argument(
      '--devices', type=flags.whole_number(1), default=1, metavar='N',
      help='devices to lay out (default: 1)',
  )
  parser.add_argument(
      '--memory', action='store_true',
      help='also compile the step for this machine with every REMAT_POLICY and '
      'print what a device needs; not with --t5x',
  )
  parser.add_argument('--json', action='store_true', help='print JSON instead')
  flags.add_gin_flags(parser)
  return parser


def _memory() -> str:
  """What a device of this machine needs for a step of the loaded files."""
  from moe_peft.training import experiment
  from moe_peft.training import remat
  from moe_peft.training import run

  return remat.summary(remat.figures(experiment.lay_out(run.build())))


def _load(args: argparse.Namespace) -> Any:
  """Whatever a plan needs of the run that the gin files describe."""
  if args.t5x:
    from moe_peft.t5x import planning as t5x_planning

    t5x_planning.load(
        args.gin_file, args.gin_bindings, args.gin_search_paths,
        args.trust_gin,
    )
    return t5x_planning.subject()
  from moe_peft.training import run
  from moe_peft.training import subject

  flags.load_gin(args, MODEL_DIR='unused')
  return subject.of_experiment(run.build())
