# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft check`: does a configuration hold what it must?"""

import argparse
import collections
from collections.abc import Sequence
import dataclasses
import json
import os
from typing import Any

import rich.console
import rich.table
import rich.text

from moe_peft import errors
from moe_peft import gin_files
from moe_peft.cli import flags

_DESCRIPTION = """\
Checks the configuration of a run, shrunk in size and not in structure, on the
CPU, in about two minutes: that adapters change nothing before training, that
padding, other rows and later tokens change nothing, that executions, scans and
meshes compute the same, that the base stays as it is, that a run continues with
the same bits, and more. Exit status 1 if something does not hold. No data and
no base are read. Gin files that set MODULE and configure no run, an adapted
network of your own for example, are checked as far as a network goes."""
_EXPERIMENT = 'moe_peft.training.experiment.Experiment'
_COLORS = {'passed': 'green', 'failed': 'red', 'skipped': 'yellow'}
# Programs run a few times: they are compiled quickly rather than well.
_FLAGS = (
    '--xla_force_host_platform_device_count',
    '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true',
    '--xla_cpu_use_fusion_emitters=false',
    '--xla_cpu_parallel_codegen_split_count=1',
    '--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE',
)
# Two axes of a mesh with up to three parts each, and two parts for data.
_DEVICES = 18


def main(argv: Sequence[str]) -> int | None:
  """Parses the command line, checks, and prints a row for each check."""
  parser = flags.make_parser(
      'moe_peft check', _DESCRIPTION, '--gin_file=configs/quickstart.gin'
  )
  parser.add_argument(
      '--only', action='append', default=[], metavar='NAME',
      help='checks that run, for example --only=padding; may be repeated '
      '(default: all)',
  )
  parser.add_argument('--json', action='store_true', help='print JSON instead')
  flags.add_gin_flags(parser)
  args = parser.parse_args(argv)
  flags.require_gin_file(args)
  gin_files.import_tensorflow()  # It would log if JAX came first.
  _use_cpus()
  from moe_peft.checks import suite
  from moe_peft.training import compilation

  compilation.use_cache()
  _check_names(args.only, suite.NAMES)
  flags.load_gin(args, MODEL_DIR='unused', INITIAL_CHECKPOINT_PATH=None)
  return _report(args, args.only or suite.NAMES)


def _use_cpus() -> None:
  """JAX gets several devices on the CPU; it must not have begun yet."""
  given = os.environ.get('XLA_FLAGS', '')
  if _FLAGS[0] not in given:
    flags = f'{_FLAGS[0]}={_DEVICES}', *_FLAGS[1:]
    os.environ['XLA_FLAGS'] = ' '.join((given, *flags)).strip()
  import jax

  jax.config.update('jax_platforms', 'cpu')


def _check_names(names: Sequence[str], known: Sequence[str]) -> None:
  for name in names:
    if name not in known:
      raise errors.UserError(
          f'There is no check {name!r}.', '--only',
          f'Choose from {", ".join(known)}.',
      )


def _subject() -> Any:
  """What the gin files describe: an experiment, or a network alone."""
  import gin

  from moe_peft.checks import networks
  from moe_peft.checks import small
  from moe_peft.training import run

  if any(selector == _EXPERIMENT for _, selector in gin.config._CONFIG):
    return small.subject(run.configured())
  known = gin_files.macros()
  if 'MODULE' not in known:
    raise errors.UserError(
        'The gin files configure no Experiment and set no MODULE.',
        '--gin_file',
        'Give a model, a method and a run file, as configs/quickstart.gin '
        'does, or set MODULE to the adapted network.',
    )
  options = {
      argument: gin_files.macro(name)
      for argument, name in (('trainable_regex', 'TRAINABLE_REGEX'),
                             ('loss_factors', 'LOSS_FACTORS'))
      if name in known
  }
  with errors.refused(
      'The network that the gin files describe cannot be built.', 'MODULE'
  ):
    return networks.subject(gin_files.macro('MODULE'), **options)


def _report(args: argparse.Namespace, names: Sequence[str]) -> int:
  """Runs the checks and prints what they find, each as soon as it has."""
  from moe_peft.checks import suite

  console = rich.console.Console(stderr=args.json, highlight=False)
  results = []
  with console.status('Building the network') as status:
    subject = _subject()
    if not args.json:
      console.print(subject.sizes)
    for result in suite.run(subject, names, status.update):
      results.append(result)
      if not args.json:
        console.print(_row(result))
  counts = collections.Counter(result.status for result in results)
  if args.json:
    print(json.dumps({
        'sizes': subject.sizes,
        'checks': [dataclasses.asdict(result) for result in results],
        **{status: counts[status] for status in _COLORS},
    }, indent=2))
  else:
    console.print(
        ', '.join(f'{counts[status]} {status}' for status in _COLORS) + '.'
    )
  return 1 if counts['failed'] else 0


def _row(result: Any) -> rich.table.Table:
  """One row; the columns of all rows stand below each other."""
  row = rich.table.Table.grid(padding=(0, 2, 0, 0))
  for width in (15, 7, 7):
    row.add_column(width=width)
  row.add_column(overflow='fold')
  color = _COLORS[result.status]
  text = [result.detail]
  if result.status == 'failed':
    text += [f'It means: {result.means}', f'Look: {result.look}']
  row.add_row(
      result.name, f'[{color}]{result.status}[/]', f'{result.seconds:5.1f} s',
      rich.text.Text('\n'.join(text)),
  )
  return row
