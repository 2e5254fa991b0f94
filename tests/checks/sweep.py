# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.checks.sweep`: `moe_peft check` for every method.

Each method is checked by the command: on the model and the run of the
quickstart, with the sizes of the method's file and adapters on a few layers.
What was found is appended to OUT/checks.jsonl, a line for each method; a second
call goes on behind them. OUT/checks.md is the table.
"""

from collections.abc import Sequence
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import gin
import jax

from moe_peft import errors
from moe_peft import gin_files
from moe_peft.cli import check
from moe_peft.cli import flags

_FILES = (
    'gin/models/tiny_t5.gin', 'gin/methods/{}.gin',
    'gin/runs/finetune_words.gin',
)
# An attention layer and one of the MLP: each adapted layer has to be compiled.
_SITES = {'SITES': '.*/(query|wo)'}
_VECTORS = {'SITES': '.*/(key|act)'}
_OWN = {}  # Files that say themselves what goes where.
_SITES_OF = {
    'bottleneck': _OWN, 'full': _OWN, 'ia3': _VECTORS, 'mixlora': _OWN,
    'mov': _VECTORS, 'mov_topk': _VECTORS, 'mov_wo': _OWN,
    'expert_choice': {'SITES': '(.*/)?encoder/.*/(query|wo)'},
}
_IDS, _SCORED = {'EXAMPLE_IDS': 3}, {'TRAIN_STEPS': 0}
# What files of methods leave to the user, and what fits the small T5's layers.
_GIVEN = {
    'bank_arrow': _SCORED,
    'bank_id': {**_IDS, **_SCORED, 'NUM_EXPERTS': 3},
    'bank_phatgoose': _SCORED, 'bank_random': _SCORED,
    'bank_retrieval': _SCORED, 'bank_spectr': _SCORED, 'bank_uniform': _SCORED,
    'flix': {
        **_IDS, 'NUM_EXPERTS': 3, 'FEATURES': (('a', 'b'), ('b', 'c'), ('c',)),
    },
    'lora_id': {**_IDS, 'NUM_EXPERTS': 3},
    'mola': {'EXPERTS_BY_DEPTH': (2, 4, 8)},
    'mosld': {'EXPERTS_BY_DEPTH': (8, 4, 2)},
    'moelora_id': _IDS, 'molora_id': _IDS, 'mtl_lora': _IDS,
}


def main(argv: Sequence[str]) -> int:
  """Parses the command line; the status is 1 if a check failed."""
  parser = flags.make_parser(
      'tests.checks.sweep', 'Checks every method.', '--method goat'
  )
  parser.add_argument(
      '--method', action='append', choices=methods(), metavar='NAME',
      help='file of gin/methods; may be repeated (default: all)',
  )
  parser.add_argument(
      '--only', action='append', default=[], metavar='NAME',
      help='checks that run; may be repeated (default: all)',
  )
  parser.add_argument(
      '--out', type=Path, default=Path('runs/checks'),
      help='folder of checks.jsonl and checks.md (default: runs/checks)',
  )
  args = parser.parse_args(argv)
  args.out.mkdir(parents=True, exist_ok=True)
  file = args.out / 'checks.jsonl'
  done = [(line['method'], line['only']) for line in _lines(file)]
  for method in args.method or methods():
    if (method, args.only) in done:
      continue
    line = run(method, args.only)
    with file.open('a', encoding='utf-8') as stream:
      stream.write(json.dumps(line) + '\n')
    print(_said(line), flush=True)
    (args.out / 'checks.md').write_text(table(_lines(file)), 'utf-8')
  print(table(_lines(file)))
  return 1 if any(line['failed'] for line in _lines(file)) else 0


def methods() -> list[str]:
  """Names of all methods."""
  return sorted(x.stem for x in gin_files.resource('gin/methods').glob('*.gin'))


def arguments(method: str) -> list[str]:
  """What the command is told to check of a method."""
  macros = _SITES_OF.get(method, _SITES) | _GIVEN.get(method, {})
  return [
      *(f'--gin_file={file.format(method)}' for file in _FILES),
      *(f'--gin.{name}={value!r}' for name, value in macros.items()),
  ]


def run(method: str, only: Sequence[str]) -> dict[str, Any]:
  """What the command says of a method, as a line of the record."""
  gin.clear_config()
  jax.clear_caches()
  line = {'method': method, 'only': list(only)}
  names = [f'--only={name}' for name in only]
  said = io.StringIO()
  try:
    with contextlib.redirect_stdout(said):
      check.main(flags.rewrite_gin_args(
          ['--json', *names, *arguments(method)]
      ))
  except errors.UserError as error:
    return {**line, 'failed': 1, 'said': str(error)}
  return {**line, **json.loads(said.getvalue())}


def _said(line: dict[str, Any]) -> str:
  """What is to be looked at of a method: its failures."""
  found = [
      f'{x["name"]}: {x["detail"]}' for x in line.get('checks', ())
      if x['status'] == 'failed'
  ]
  if 'said' in line:
    found.append(line['said'])
  return '\n  '.join([line['method'], *found])


def _lines(file: Path) -> list[dict[str, Any]]:
  if not file.exists():
    return []
  return [json.loads(x) for x in file.read_text('utf-8').splitlines()]


def table(lines: Sequence[dict[str, Any]]) -> str:
  """What was found, a row for each method, in Markdown; then what was skipped.

  Args:
    lines: Of the record.
  """
  found = {}
  for line in lines:
    of = found.setdefault(line['method'], {})
    of |= {x['name']: x for x in line.get('checks', ())}
  names = list(dict.fromkeys(name for of in found.values() for name in of))
  rows = [f'| method | {" | ".join(names)} |', '|---' * (len(names) + 1) + '|']
  reasons = [
      f'| {line["method"]} | all | {_cell(line["said"])} |' for line in lines
      if 'said' in line
  ]
  for method, of in sorted(found.items()):
    cells = [of[name]['status'] if name in of else '' for name in names]
    rows.append(f'| {method} | {" | ".join(cells)} |')
    reasons += [
        f'| {method} | {name} | {_cell(x["detail"])} |'
        for name, x in of.items()
        if x['status'] != 'passed' and name != 'packing'
    ]
  why = ['| method | check | why it was skipped, or failed |', '|---|---|---|']
  return '\n'.join([*rows, '', *why, *reasons, ''])


def _cell(text: str) -> str:
  """A text that stays in its cell: SITES has bars, messages have lines."""
  return ' '.join(text.split()).replace('|', r'\|')


if __name__ == '__main__':
  flags.run(main)
