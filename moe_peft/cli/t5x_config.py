# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft t5x_config`: an experiment as a gin file of T5X."""

from collections.abc import Sequence
from pathlib import Path

from moe_peft import atomic
from moe_peft import errors
from moe_peft import gin_trust
from moe_peft.cli import flags

_DESCRIPTION = """\
Writes the experiment that gin files of moe_peft.train, or the config.gin of a
run, describe as a gin file of t5x.train: the same model, method, optimizer,
schedule and rows. A base that T5X cannot restore is written beside it as a T5X
checkpoint. T5X need not be installed."""


def main(argv: Sequence[str]) -> int | None:
  """Parses the command line and writes the file."""
  parser = flags.make_parser(
      'moe_peft t5x_config',
      _DESCRIPTION,
      '--gin_file=configs/quickstart.gin --out my_t5x.gin',
  )
  parser.add_argument(
      '--out', required=True, type=flags.output_file('.gin'), metavar='FILE',
      help='file to write',
  )
  flags.add_gin_flags(parser)
  args = parser.parse_args(argv)
  flags.require_gin_file(args)
  args.gin_file = [_config_of(file) for file in args.gin_file]
  if args.out.exists():
    raise errors.UserError(
        f'{args.out} is there already.', '--out', 'Name another file.'
    )
  flags.load_gin(args, MODEL_DIR='unused')
  import gin

  from moe_peft.data import catalog
  from moe_peft.t5x import leaf
  from moe_peft.training import run

  experiment = run.build()
  base = leaf.base_of(experiment, args.out.with_suffix('.base'))
  cached = catalog.reads_cache(experiment.mixture_or_task_name)
  text = leaf.make(experiment, gin.config_str(), base, args.out, cached)
  atomic.write(args.out, text)
  print(
      f'python -m t5x.train --gin_file={args.out} '
      f'''--gin.MODEL_DIR="'runs/{args.out.stem}'"'''
  )
  return None


def _config_of(path: str) -> str:
  """The gin file itself, or that of a run."""
  file = Path(path) / gin_trust.FILE
  return str(file) if file.is_file() else path
