# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What all command lines share: the flags for gin files, clear errors.

The flags are those of T5X: `--gin_file` (repeated), `--gin.NAME=VALUE`,
`--gin_search_paths`.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
import sys

import absl.logging

from moe_peft import errors
from moe_peft import gin_files


def add_gin_flags(parser: argparse.ArgumentParser) -> None:
  """Adds T5X's gin flags to a parser."""
  parser.add_argument(
      '--gin_file',
      action='append',
      default=[],
      metavar='FILE',
      help='gin file, by path or by the name it ships under; may be repeated, '
      'the later one wins',
  )
  parser.add_argument(
      '--gin.NAME',
      dest='gin_bindings',
      action='append',
      default=[],
      metavar='VALUE',
      help='sets a gin macro or binding, for example --gin.TRAIN_STEPS=100',
  )
  parser.add_argument(
      '--gin_search_paths',
      default='',
      metavar='DIR,DIR',
      help='more folders in which gin files are looked for',
  )


def rewrite_gin_args(args: Sequence[str]) -> list[str]:
  """Rewrites `--gin.NAME=VALUE` to the flag that argparse knows."""
  rewritten = []
  for arg in args:
    if arg.startswith('--gin.') and arg != '--gin.NAME':
      if '=' not in arg:
        raise errors.UserError(f'Write {arg} as {arg}=VALUE.')
      rewritten.append('--gin.NAME=' + arg.removeprefix('--gin.'))
    else:
      rewritten.append(arg)
  return rewritten


def run(main: Callable[[Sequence[str]], int | None]) -> None:
  """Runs a command line; user errors end it in one line with status 2."""
  # SeqIO and Orbax log much that helps nobody here.
  absl.logging.set_verbosity(absl.logging.ERROR)
  try:
    sys.exit(main(rewrite_gin_args(sys.argv[1:])) or 0)
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
  except BrokenPipeError:  # For example `... | head`.
    sys.exit(1)


def load_run(args: argparse.Namespace) -> None:
  """Loads the configuration of a run, `RUN/config.gin`, and what is given.

  Args:
    args: Parsed arguments with `run` and the gin flags.

  Raises:
    errors.UserError: If there is no such run, or for wrong bindings.
  """
  config = Path(args.run).expanduser() / 'config.gin'
  if not config.is_file():
    raise errors.UserError(
        f'{args.run} is no run: it holds no config.gin. Give the MODEL_DIR of '
        'a training run.'
    )
  gin_files.load_gin(
      [str(config), *args.gin_file],
      [f'MODEL_DIR={args.run!r}', *args.gin_bindings],
      args.gin_search_paths,
  )
