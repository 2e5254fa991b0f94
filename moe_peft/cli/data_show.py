# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft data show`: rows as the model sees them."""

import argparse
import itertools

import rich.console
import rich.table
import rich.text

from moe_peft.cli import flags

# They stand around what is learned where a terminal has no colors.
MARKS = ('⟦', '⟧')
_STYLES = {
    (False, False): 'dim',
    (False, True): 'dim cyan',
    (True, False): 'green',
    (True, True): 'bold green',
}  # By learned, special.


def add_parser(commands) -> None:
  """Adds the subcommand."""
  parser = commands.add_parser(
      'show',
      help='a few rows as the model sees them, and how long they are',
      description='Prints rows of the task that the gin files describe, as the '
      'model sees them: special tokens visible, what the loss counts in green, '
      f'or between {MARKS[0]} and {MARKS[1]} where there are no colors. Then '
      'how long the examples are, and how many are cut or left out.',
  )
  parser.add_argument(
      '--rows', type=flags.whole_number(1), default=3, metavar='N',
      help='default: 3',
  )
  parser.add_argument(
      '--split', default='train', metavar='NAME', help='default: train'
  )
  flags.add_gin_flags(parser)
  parser.set_defaults(run=lambda **args: _show(argparse.Namespace(**args)))


def _show(args: argparse.Namespace) -> None:
  flags.show_notes()
  flags.load_gin(args, MODEL_DIR='unused')
  from moe_peft.data import catalog
  from moe_peft.data import shown_rows
  from moe_peft.training import run

  experiment = run.build()
  name, lengths = (
      experiment.mixture_or_task_name, experiment.task_feature_lengths
  )
  catalog.check_split(name, args.split, '--split')
  console = rich.console.Console(highlight=False)
  objective = experiment.objective
  rows = shown_rows.rows(
      name, experiment.model,
      objective.feature_converter(experiment.model, experiment.packing),
      objective.task_lengths(lengths), args.split,
  )
  for number, row in enumerate(itertools.islice(rows, args.rows), start=1):
    for stack, pieces in row.items():
      learned = sum(piece.learned for piece in pieces)
      counts = {'given': len(pieces) - learned, 'learned': learned}
      said = ', '.join(f'{n} {what}' for what, n in counts.items() if n)
      console.print(f'{stack} {number}, tokens: {said}', style='bold')
      console.print(_text(pieces, console.is_terminal), soft_wrap=True)
    console.print()
  console.print(_table(name, args.split, lengths))


def _text(pieces, colors: bool) -> rich.text.Text:
  from moe_peft.data import token_texts

  text, learned, segment = rich.text.Text(), False, 1
  for piece in pieces:
    if not colors and (piece.learned != learned):
      text.append(MARKS[learned])
    learned = piece.learned
    if piece.segment != segment:
      text.append('\n----\n')
      segment = piece.segment
    style = _STYLES[piece.learned, piece.special] if colors else ''
    text.append(token_texts.visible(piece.text), style)
  if learned and not colors:
    text.append(MARKS[1])
  return text


def _table(name: str, split: str, lengths) -> rich.table.Table:
  """How long the examples of each task are."""
  import numpy as np  # Not for --help.

  from moe_peft.data import catalog
  from moe_peft.data import shown_rows

  table = rich.table.Table(
      title=f'tokens of examples of {split}; TASK_FEATURE_LENGTHS = '
      f'{dict(lengths)}',
  )
  for column in ('task', 'feature'):
    table.add_column(column)
  for column in ('examples', 'median', '95 %', 'longest', 'cut', 'left out'):
    table.add_column(column, justify='right')
  for task in catalog.task_names(name):
    if split not in catalog.get_task_or_mixture(task).splits:
      continue
    found, cut, dropped = shown_rows.lengths_of(task, lengths, split)
    counts = f'{cut:,}', f'{dropped:,}'
    for feature, of in found.items():
      shares = np.quantile(of, (0.5, 0.95, 1), method='higher')
      sizes = (f'{x:,}' for x in (len(of), *shares))
      table.add_row(task, feature, *sizes, *counts)
      task, counts = '', ('', '')
  return table
