# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft bank build | add | remove | show`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from moe_peft import atomic
from moe_peft import gin_files
from moe_peft.cli import flags

_EPILOG = """\
examples:
  python -m moe_peft bank build --from loras/one --from runs/two \\
    --base bases/flan_t5_small --out banks/mine
  python -m moe_peft bank add banks/mine --from loras/three
  python -m moe_peft bank show banks/mine --out similarity.svg
"""


def main(argv: Sequence[str]) -> int | None:
  """Parses the command line and runs the command."""
  parser = flags.Parser(
      prog='python -m moe_peft bank',
      description='LoRAs that were trained apart become the frozen experts of '
      'one base, over which a router is trained or computed '
      '(gin/methods/bank*.gin).',
      epilog=_EPILOG,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(
      dest='command', required=True, metavar='{build,add,remove,show}'
  )
  _add_build(commands)
  _add_add(commands)
  _add_remove(commands)
  _add_show(commands)
  args = parser.parse_args(argv)
  gin_files.import_tensorflow()  # It would log, imported by what follows.
  return args.run_command(args)


def _add_build(commands) -> None:
  parser = commands.add_parser('build', help='LoRAs and their base to a bank')
  parser.set_defaults(run_command=_build)
  _add_sources(parser)
  parser.add_argument(
      '--base', required=True,
      help='base of hf import, or what the runs have as INITIAL_CHECKPOINT_PATH'
  )
  parser.add_argument(
      '--out', type=flags.output_folder, required=True, help='bank to write'
  )
  flags.add_force_flag(parser)


def _add_add(commands) -> None:
  parser = commands.add_parser(
      'add', help='more experts, behind those that are there'
  )
  parser.set_defaults(run_command=_add)
  parser.add_argument('bank', metavar='BANK', type=Path)
  _add_sources(parser)


def _add_remove(commands) -> None:
  parser = commands.add_parser('remove', help='experts out of a bank')
  parser.set_defaults(run_command=_remove)
  parser.add_argument('bank', metavar='BANK', type=Path)
  parser.add_argument('names', metavar='NAME', nargs='+')


def _add_show(commands) -> None:
  parser = commands.add_parser(
      'show', help='where the experts come from, and how alike they are'
  )
  parser.set_defaults(run_command=_show)
  parser.add_argument('bank', metavar='BANK', type=Path)
  parser.add_argument(
      '--out', type=flags.output_file('.svg'), metavar='FILE.svg',
      help='picture of similarities',
  )


def _add_sources(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
      '--from', dest='sources', action='append', required=True,
      metavar='[NAME=]ADAPTER',
      help='PEFT folder of a LoRA or an X-LoRA, a folder of LoRA folders, or '
      'MODEL_DIR of a LoRA run; may be repeated',
  )
  parser.add_argument(
      '--unchecked', action='store_true',
      help='take PEFT folders that name another base, if their shapes fit',
  )
  parser.add_argument(
      '--trust_gin', action='store_true',
      help='runs the config.gin of a run as the code that it is',
  )


def _build(args: argparse.Namespace) -> None:
  from moe_peft.experts import bank

  made = bank.build(
      args.sources, args.base, args.out, unchecked=args.unchecked,
      trust=args.trust_gin, force=args.force,
  )
  _report(args.out, made)


def _add(args: argparse.Namespace) -> None:
  from moe_peft.experts import bank

  made = bank.add(
      args.bank, args.sources, unchecked=args.unchecked, trust=args.trust_gin
  )
  _report(args.bank, made)


def _remove(args: argparse.Namespace) -> None:
  from moe_peft.experts import bank

  _report(args.bank, bank.remove(args.bank, args.names))


def _report(folder: Path, made) -> None:
  from moe_peft.experts import bank
  from moe_peft.experts import bank_gin

  prepared, last = bank.routers(folder, made), bank_gin.FILE
  if made.classifier:
    what = f'{len(made.experts)} experts and a classifier'
    method, last = bank_gin.XLORA_METHOD, bank_gin.XLORA_FILE
    aim = 'score it (TRAIN_STEPS = 0) or train it on'
  elif len(made.experts) == 1:
    what, method = 'one expert', 'phatgoose.gin (or retrieval.gin)'
    aim = 'train what a router will ask of it'
  elif prepared:
    what, method = f'{len(made.experts)} experts', ' or '.join(prepared)
    aim = 'score it (TRAIN_STEPS = 0)'
  else:
    what, method = f'{len(made.experts)} experts', 'bank.gin'
    aim = 'train a router'
  print(
      f'{folder}: {what} of rank {made.rank}; {aim} with a model file, '
      f'--gin_file=gin/methods/{method}, a run file and '
      f'--gin_file={folder / last}, in this order'
  )


def _show(args: argparse.Namespace) -> None:
  import rich.console
  import rich.table

  from moe_peft.experts import bank
  from moe_peft.experts import bank_gin
  from moe_peft.report import similarity

  made, params = bank.load(args.bank)
  table = rich.table.Table(
      'expert', 'from', 'licence', 'rank', 'layers', 'checked', 'prepared',
      title=f'{len(made.experts)} experts on {made.base_model or "a base"}',
  )
  for name, row in bank.describe(args.bank, made).items():
    table.add_row(name, *row)
  console = rich.console.Console(markup=False)
  console.print(table)
  for sentence in bank.lacking(args.bank, made):
    console.print(sentence)
  if made.classifier:
    console.print(
        f'with the classifier of {made.classifier}: '
        f'gin/methods/{bank_gin.XLORA_METHOD} reads it, and as the last gin '
        f'file {args.bank / bank_gin.XLORA_FILE}'
    )
  means = similarity.mean(params)
  console.print(similarity.table(made.names, means))
  if args.out:
    args.out.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(args.out, similarity.picture(made.names, means))
    print(f'{args.out}: written')
