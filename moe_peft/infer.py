# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft.infer`: answers lines with a trained run."""

import argparse
from collections.abc import Sequence
import sys

from moe_peft import errors
from moe_peft.cli import flags


def main(argv: Sequence[str]) -> int | None:
  """Parses the command line and prints one answer for each line."""
  parser = argparse.ArgumentParser(
      prog='python -m moe_peft.infer',
      description='Prints one answer for each input line.',
      epilog="example: echo 'past tense: walk' | python -m moe_peft.infer "
      'runs/quickstart',
  )
  parser.add_argument('run', metavar='RUN', help='MODEL_DIR of the run')
  parser.add_argument(
      'file', nargs='?', help='text file, one input a line (default: stdin)'
  )
  parser.add_argument(
      '--decode',
      choices=('greedy', 'beam', 'sample'),
      default='greedy',
      help='default: greedy',
  )
  parser.add_argument('--beams', type=int, default=4, help='for --decode=beam')
  parser.add_argument(
      '--temperature', type=float, default=1.0, help='for --decode=sample'
  )
  parser.add_argument('--seed', type=int, default=0, help='for --decode=sample')
  flags.add_gin_flags(parser)
  args = parser.parse_args(argv)
  lines = _read_lines(args.file)
  flags.load_run(args)
  import jax

  from moe_peft.training import restored

  options = {
      'greedy': {},
      'beam': {'num_beams': args.beams},
      'sample': {
          'temperature': args.temperature,
          'rng': jax.random.key(args.seed),
      },
  }[args.decode]
  for answer in restored.infer(lines, **options):
    print(answer)
  return None


def _read_lines(file: str | None) -> list[str]:
  try:
    if file is not None:
      with open(file, encoding='utf-8') as stream:
        return stream.read().splitlines()
    return sys.stdin.read().splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise errors.UserError(f'{file or "stdin"} cannot be read: {error}') from (
        error
    )


if __name__ == '__main__':
  flags.run(main)
