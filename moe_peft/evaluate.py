# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft.evaluate`: scores a run again."""

from collections.abc import Sequence

from moe_peft.cli import flags


def main(argv: Sequence[str]) -> int | None:
  """Parses the command line and evaluates the newest checkpoint."""
  parser = flags.make_parser(
      'moe_peft.evaluate',
      'Scores the newest checkpoint of a run, and its bare base, on a split; '
      'prints the table and writes RUN/results_SPLIT.json.',
      'runs/quickstart --split=validation',
  )
  parser.add_argument('run', metavar='RUN', help='MODEL_DIR of the run')
  parser.add_argument(
      '--split', metavar='NAME',
      help='default: test, or EVAL_SPLIT where the tasks have no such split',
  )
  flags.add_gin_flags(parser)
  args = parser.parse_args(argv)
  flags.load_run(args, of_t5x=True)
  from moe_peft.training import restored

  return restored.evaluate_run(args.split)


if __name__ == '__main__':
  flags.run(main)
