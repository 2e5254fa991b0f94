# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft hf import | export | verify`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
import re
import sys

from moe_peft import atomic
from moe_peft import errors
from moe_peft import gin_files
from moe_peft.cli import flags

_EPILOG = """\
examples:
  python -m moe_peft hf import flan-t5-small --out bases/flan_t5_small
  python -m moe_peft hf export runs/quickstart --out exports/quickstart
  python -m moe_peft hf verify exports/quickstart
"""


def main(argv: Sequence[str]) -> int | None:
  """Parses the command line and runs the command."""
  parser = flags.Parser(
      prog='python -m moe_peft hf',
      description='Hugging Face formats: imports bases, exports trained '
      'models, verifies exported folders.',
      epilog=_EPILOG,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(
      dest='command', required=True, metavar='{import,export,verify}'
  )
  _add_import(commands)
  _add_export(commands)
  _add_verify(commands)
  args = parser.parse_args(argv)
  return args.run_command(args)


def _hub_name(text: str) -> str:
  """Type of a flag that names a model on the Hub, or a folder."""
  known = re.fullmatch(r'(\w[\w.-]*/)?\w[\w.-]*', text, re.ASCII)
  if text and not known and not Path(text).is_dir():
    raise argparse.ArgumentTypeError(
        f'{text!r} is no name on the Hub, such as google/flan-t5-small, and no '
        'folder'
    )
  return text


def _add_import(commands) -> None:
  parser = commands.add_parser(
      'import',
      help='a T5 or a decoder (LLaMA, Qwen, Gemma and others) to a base',
      description='Writes a base that INITIAL_CHECKPOINT_PATH names, with '
      'model.gin, the file that describes it for gin.',
  )
  parser.set_defaults(run_command=_import)
  add = parser.add_argument
  add('folder', metavar='DIR', type=Path,
      help='model folder, or a GGUF file of a decoder')
  add('--out', type=flags.output_folder, required=True, help='base to write')
  add('--layout', choices=('t5', 'scan', 'unrolled'), default='t5',
      help='of the parameters: t5 (default), scan (SCAN_LAYERS = True, and '
      "T5X's scalable_t5), unrolled (scalable_t5 without scan)")
  add('--format', choices=('orbax', 'safetensors'), default='orbax',
      help='default: orbax')
  add('--hub_id', type=_hub_name, default='',
      help='name of the model on the Hub, such as google/flan-t5-small, for '
      'the cards of what is exported later')
  add('--experts', nargs='+', type=Path, default=[], metavar='LORA',
      help='PEFT LoRA folders that become the experts of a MoLoRA; writes '
      'experts.gin, which trains the routers over them')


def _add_export(commands) -> None:
  parser = commands.add_parser(
      'export',
      help='a run to a folder for transformers and peft',
      description='Exports the newest checkpoint of a run. peft: an adapter '
      '(native for LoRA and (IA)^3, else with the tuner in the folder). '
      'merged: plain weights, for methods without a router. full: base and '
      'experts, for trust_remote_code; it holds every method. experts: each '
      'expert alone, for inspection. gguf: a LoRA for llama.cpp.',
  )
  parser.set_defaults(run_command=_export)
  add = parser.add_argument
  add('run', metavar='RUN', help='MODEL_DIR of the run')
  add('--out', type=flags.output_folder, required=True,
      help='folder to write')
  add('--format', choices=('peft', 'merged', 'full', 'experts', 'gguf'),
      default='peft', help='default: peft')
  add('--dtype', choices=('float32', 'bfloat16'), default='float32',
      help='of the weights of --format merged (default: float32)')
  add('--hub_id', '--base', dest='hub_id', type=_hub_name, default='',
      metavar='NAME',
      help='name of the base on the Hub, where the import did not say it; '
      'without one the base is written into the folder')
  add('--example_id', metavar='ID',
      help='for runs with EXAMPLE_IDS: what it is for the examples of one id, '
      'an ordinary LoRA, exactly')
  add('--collapse', type=Path, metavar='ROWS.jsonl',
      help='average the gates over three quarters of these examples, of any '
      'format that tasks have, into one '
      'ordinary LoRA, and measure on the rest what that costs')
  add('--rank', type=flags.whole_number(1),
      help='with --collapse: cut the LoRA to this rank')
  add('--per_task', action='store_true',
      help='with --collapse: one LoRA for each "task" of the examples')
  flags.add_force_flag(parser)
  flags.add_gin_flags(parser)


def _add_verify(commands) -> None:
  parser = commands.add_parser(
      'verify',
      help='load an exported folder in torch and compare',
      description='Prints the largest difference between the logits of torch '
      'and those that JAX wrote; exit status 1 above 1e-5 of the largest.',
  )
  parser.set_defaults(run_command=_verify)
  parser.add_argument('folder', metavar='DIR', type=Path)
  parser.add_argument(
      '--base', default='', help='name or folder of the base of an adapter'
  )


def _import(args: argparse.Namespace) -> None:
  gin_files.import_tensorflow()
  flags.show_notes()
  from moe_peft.hf import import_base

  import_base.import_base(
      args.folder, args.out, args.layout, args.format, args.hub_id,
      args.experts,
  )
  if args.experts:
    print(
        f'{args.out}: train '
        f'{"its routers" if len(args.experts) > 1 else "the LoRA"} with '
        f'--gin_file={args.out / "model.gin"} '
        f'--gin_file={args.out / "experts.gin"} '
        '--gin_file=gin/runs/finetune.gin '
        f'--gin.INITIAL_CHECKPOINT_PATH={args.out}'
    )
    return
  print(f'{args.out}: written.')
  model = args.out / 'model.gin'
  open_ends = [
      line.partition(' = ')[0].strip()
      for line in model.read_text('utf-8').splitlines()
      if line.endswith('%gin.REQUIRED')
  ]
  if open_ends:
    print(
        f'First set in {model} what {args.folder} does not say '
        '(VOCABULARY_FILE is the path of its tokenizer.json): '
        f'{", ".join(open_ends)}.'
    )
  print('A gin file that trains it on your rows:')
  print(
      f'  python -m moe_peft init --base {args.out} --data ROWS.jsonl '
      '--out my_run.gin'
  )


def _check_export(args: argparse.Namespace) -> None:
  """Refuses flags that do not go together, before the run is read."""
  if not args.collapse and (args.rank is not None or args.per_task):
    raise errors.UserError(
        '--rank and --per_task belong to --collapse.', where='--collapse'
    )
  if args.out.resolve() == Path(args.run).expanduser().resolve():
    raise errors.UserError(
        f'{args.out} is the run itself.', '--out', 'Name another folder.'
    )
  atomic.check_new(args.out, '--out', args.force)


def _export(args: argparse.Namespace) -> int:
  _check_export(args)
  flags.load_run(args, of_t5x=True)
  from moe_peft.hf import collapse
  from moe_peft.hf import export
  from moe_peft.hf import trained as trained_lib

  if args.collapse:  # Judged before the run is loaded.
    collapse.read_rows(args.collapse, args.per_task)
  number = None if args.example_id is None else _id_number(args.example_id)
  trained = trained_lib.from_run(args.hub_id, args.format)
  if number is not None:
    from moe_peft.hf import one_id

    trained = one_id.of(trained, number, args.example_id)
  if args.collapse:
    made = export.export_collapsed(
        trained, args.out, args.collapse, args.format, args.rank,
        args.per_task, args.force, args.dtype,
    )
    for collapsed in made:
      _print_losses(collapsed)
  else:
    export.export(trained, args.out, args.format, args.force, args.dtype)
  print(f'{args.out}: written')
  written = [args.out]
  if args.per_task:
    written = sorted(path for path in args.out.iterdir() if path.is_dir())
  if args.format in ('experts', 'gguf'):
    written = []  # Not equal to the run, or not for torch.
  return max((_measure(folder) for folder in written), default=0)


def _id_number(name: str) -> int:
  """The number of an id among EXAMPLE_IDS of the run, from 0."""
  from moe_peft.data import example_ids

  known = 'EXAMPLE_IDS' in gin_files.macros()
  ids = gin_files.macro('EXAMPLE_IDS') if known else None
  (number,) = example_ids.of_prompts([name], ids)
  return number - 1


def _print_losses(collapsed) -> None:
  from moe_peft.hf import collapse

  text = ', '.join(f'{k} {v:.4f}' for k, v in collapsed.losses.items())
  print(
      'mean loss of a target token in nats, on held-out rows '
      f'({collapsed.num_held_out}), over which no gate was averaged: {text}'
  )
  if not collapsed.worth_it:
    print(
        f'not worth it: collapsing costs {collapsed.cost:+.4f} nats, more than '
        f'{collapse.WORTH_IT}; --format full keeps the routers'
    )


def _measure(folder: Path) -> int:
  """Verifies what was written, where torch and the base are at hand."""
  from moe_peft.hf import verify

  verdict = verify.measure(folder)
  if verdict is None:
    print(f'not verified here; run python -m moe_peft hf verify {folder}')
    return 0
  return _report(folder, verdict)


def _verify(args: argparse.Namespace) -> int:
  gin_files.import_tensorflow()  # It would log, imported by what follows.
  from moe_peft.hf import verify

  return _report(args.folder, verify.verify(args.folder, args.base))


def _report(folder: Path, verdict) -> int:
  from moe_peft.hf import verify

  print(verify.describe(folder, verdict))
  if not verdict.equal:
    print('error: the folder does not compute what was trained.',
          file=sys.stderr)
  return 0 if verdict.equal else 1
