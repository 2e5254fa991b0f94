# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft.infer`: answers lines with a trained run."""

from collections.abc import Sequence
import json
from pathlib import Path
import re
import sys

from moe_peft import errors
from moe_peft.cli import flags
from moe_peft.data import text_files

# Where programs cut a text into lines: those of `str.splitlines`.
_LINE_ENDS = re.compile('[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]')


def main(argv: Sequence[str]) -> int | None:
  """Parses the command line and prints one answer for each line."""
  parser = flags.make_parser(
      'moe_peft.infer',
      'Prints one line for each input line; a line break inside an answer is '
      'printed as \\n, and --json tells it from these two characters.',
      'runs/quickstart questions.txt',
  )
  parser.add_argument('run', metavar='RUN', help='MODEL_DIR of the run')
  parser.add_argument(
      'file', nargs='?', help='text file, one input a line (default: stdin)'
  )
  parser.add_argument(
      '--decode', choices=('greedy', 'beam', 'sample'), default='greedy',
      help='default: greedy',
  )
  parser.add_argument(
      '--beams', type=flags.whole_number(1), default=4, metavar='N',
      help='for --decode=beam (default: 4)',
  )
  flags.add_sampling_flags(parser, 1.0, 'for --decode=sample; default: 1')
  parser.add_argument(
      '--json', action='store_true',
      help='print each answer as a string of JSON, its exact text',
  )
  parser.add_argument(
      '--chat', action='store_true',
      help='each line is what a user says, or a conversation as JSON',
  )
  parser.add_argument(
      '--example_id', metavar='ID',
      help='for runs with EXAMPLE_IDS: the task, language or client of all '
      'lines, a name or a number',
  )
  parser.add_argument(
      '--rows', action='store_true',
      help='each line is an object of JSON: its "inputs" and its "example_id"',
  )
  flags.add_gin_flags(parser)
  args = parser.parse_args(argv)
  if args.rows and args.chat:
    parser.error('--rows and --chat say two things of the lines')
  lines = _read_lines(args.file)
  flags.load_run(args, of_t5x=True)
  import jax

  from moe_peft.data import example_ids
  from moe_peft.training import restored

  ids = [None] * len(lines)
  if args.rows:
    lines, ids = example_ids.read_rows(lines)
  ids = [args.example_id if x is None else x for x in ids]

  options = {
      'greedy': {},
      'beam': {'num_beams': args.beams},
      'sample': {
          'temperature': args.temperature,
          'rng': jax.random.key(args.seed),
      },
  }[args.decode]
  answers = restored.infer(lines, args.chat, example_ids=ids, **options)
  for answer in answers:
    print(json.dumps(answer) if args.json else _one_line(answer), flush=True)
  return None


def _one_line(text: str) -> str:
  """The text with what ends a line written as in Python, `\\n` or `\\x85`."""
  return _LINE_ENDS.sub(lambda end: repr(end[0])[1:-1], text)


def _read_lines(file: str | None) -> list[str]:
  try:
    content = Path(file).read_bytes() if file else sys.stdin.buffer.read()
  except OSError as error:
    raise errors.UserError(
        f'The input cannot be read: {error}.', file or 'stdin'
    ) from error
  return [line for _, line in text_files.lines(content, file or 'stdin')]


if __name__ == '__main__':
  flags.run(main)
