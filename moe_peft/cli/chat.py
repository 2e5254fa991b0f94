# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft chat RUN`: talks with a trained run."""

from collections.abc import Sequence
import sys

import rich.console

from moe_peft import errors
from moe_peft import signals
from moe_peft.cli import flags

_DESCRIPTION = """\
Talks with the newest checkpoint of a run, in the model's own chat template.
Ctrl-C ends an answer; /new begins a new conversation, /quit or Ctrl-D leaves.
Where the conversation grows longer than the run's rows, its first turns are
left out."""
_MOST_SHOWN = 3  # Experts of a line.


def main(argv: Sequence[str]) -> int | None:
  """Parses the command line and talks until the user leaves."""
  parser = flags.make_parser('moe_peft chat', _DESCRIPTION, 'runs/mine')
  parser.add_argument('run', metavar='RUN', help='MODEL_DIR of the run')
  parser.add_argument(
      '--system', default='', metavar='TEXT', help='what the system says first'
  )
  parser.add_argument(
      '--max_tokens', type=flags.whole_number(1), metavar='N',
      help='tokens of an answer at most (default: the length of targets)',
  )
  flags.add_sampling_flags(
      parser, None, 'default: no samples, the best token each time'
  )
  parser.add_argument(
      '--experts', action='store_true',
      help='shows after each answer which experts wrote it',
  )
  parser.add_argument(
      '--example_id', metavar='ID',
      help='for runs with EXAMPLE_IDS: a name or a number',
  )
  flags.add_gin_flags(parser)
  args = parser.parse_args(argv)
  flags.load_run(args, of_t5x=True)
  from moe_peft.training import chatting

  chatter = chatting.Chatter(
      args.max_tokens, args.temperature or 0.0, args.seed, args.system,
      args.example_id,
  )
  for line in _lines():
    if line == '/new':
      chatter.forget()
      continue
    try:
      _answer(chatter, line)
      if args.experts:
        _print_experts(chatter.experts())
    except errors.UserError as error:  # The next message may be better.
      if not sys.stdin.isatty():
        raise
      print(f'error: {error}', file=sys.stderr)
  return None


def _lines():
  """Yields what the user says, until the end or /quit."""
  while True:
    try:
      line = input('> ' if sys.stdin.isatty() else '').strip()
    except EOFError:
      return
    if line == '/quit':
      return
    if line:
      yield line


def _answer(chatter, line: str) -> None:
  """Prints an answer while it is made; Ctrl-C ends it."""
  from moe_peft.data import token_texts

  pieces = chatter.answer(line)
  try:
    for piece in pieces:
      print(token_texts.visible(piece), end='', flush=True)
  except KeyboardInterrupt:
    signals.handled()
    pieces.close()
  print()


def _print_experts(found) -> None:
  console = rich.console.Console(stderr=True, highlight=False)
  if not found:
    console.print(
        'No experts: the run has no routers, or the answer no tokens.',
        style='dim',
    )
  for site, weights in found.items():
    best = weights.argsort()[::-1][:_MOST_SHOWN]
    shares = weights / max(weights.sum(), 1e-9)
    text = ', '.join(f'{i} ({shares[i]:.0%})' for i in best)
    console.print(f'{site}: experts {text}', style='dim')
