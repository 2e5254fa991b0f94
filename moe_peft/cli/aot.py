# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft aot`: a training step compiled for TPUs, without one."""

import argparse
from collections.abc import Callable, Mapping, Sequence
import functools
import json
import os
from pathlib import Path
import sys
from typing import Any

from moe_peft import atomic
from moe_peft import errors
from moe_peft.cli import flags

_DESCRIPTION = """\
Compiles the training step that gin files of moe_peft.train, or with --t5x of
t5x.train, describe for slices of TPUs, with their compiler and without a TPU,
and prints what one device holds, computes and exchanges. No parameter is made:
the base checkpoint is not needed. Nothing is run: memory and program are the
compiler's, FLOPs and bytes are counted in its program, times are bounds from
published peaks. --topology=host-8 is eight devices of this machine's CPU, for
which the compiler of TPUs is not needed."""


def main(argv: Sequence[str]) -> int | None:
  """Parses the command line, compiles and prints.

  Returns:
    Exit status: 1 if something does not fit.
  """
  args = _parser().parse_args(argv)
  if args.header:
    _check_header(args)
  if args.show:
    return _show(args.show, args.gin_file if args.header else ())
  if not args.topology:
    raise errors.UserError(
        'There is no slice to compile for.', '--topology',
        'Give at least one, for example v5e-16.',
    )
  flags.require_gin_file(args)
  # A TPU of this machine is not needed, and another program may hold it.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  from moe_peft.compile import tables
  from moe_peft.compile import topologies

  slices = [topologies.find(name) for name in args.topology]
  slices[0].devices()  # Says at once if the compiler is missing.
  make_step = _load(args)
  pairs = [(s, e) for s in slices for e in args.execution or [None]]
  reports = []
  for number, (topology, execution) in enumerate(pairs, start=1):
    print(
        f'[{number}/{len(pairs)}] compiling for {topology.name}',
        file=sys.stderr, flush=True,
    )
    name = '+'.join(Path(file).stem for file in args.gin_file)
    report = _compile(make_step, topology, execution, args.hlo)
    head = {'experiment': name, 'bindings': args.gin_bindings}
    reports.append(head | report)
    tables.show_report(reports[-1])
    _keep(args, reports)
  tables.show_summary(reports)
  return None if all(report['fits'] for report in reports) else 1


def _keep(
    args: argparse.Namespace, reports: Sequence[Mapping[str, Any]]
) -> None:
  """Writes what is asked for; after each: a large slice takes minutes."""
  from moe_peft.compile import headers

  if args.json:
    args.json.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(args.json, json.dumps(reports, indent=2) + '\n')
  if args.header:
    headers.write(Path(args.gin_file[0]), reports[-1:])


def _parser() -> argparse.ArgumentParser:
  parser = flags.make_parser(
      'moe_peft aot',
      _DESCRIPTION,
      '--gin_file=configs/aot/t5_1_1_xl_molora_10.gin --topology=v5e-16',
  )
  parser.add_argument(
      '--topology', action='append', metavar='NAME',
      help='slice to compile for, for example v5e-256; may be repeated',
  )
  parser.add_argument(
      '--t5x', action='store_true',
      help='the gin files are those of t5x.train, for example in configs/t0',
  )
  parser.add_argument(
      '--execution', action='append',
      choices=('all_experts', 'einsum', 'ragged'),
      help='execution of the experts instead of the one in the gin files; may '
      'be repeated',
  )
  parser.add_argument(
      '--json', type=flags.output_file('.json'), metavar='FILE',
      help='also write a file of JSON',
  )
  parser.add_argument(
      '--show', type=Path, nargs='+', metavar='FILE',
      help='print the rows of files that --json has written; compile nothing',
  )
  parser.add_argument(
      '--hlo', type=flags.output_folder, metavar='DIR',
      help='keep the compiled programs (HloModuleProto), for other tools',
  )
  parser.add_argument(
      '--header', action='store_true',
      help='write memory and the least time of a step into the comment that '
      'the gin file begins with; with --show, from those files',
  )
  flags.add_gin_flags(parser)
  return parser


def _is_host(topology: str) -> bool:
  return topology.startswith('host-')


def _check_header(args: argparse.Namespace) -> None:
  if len(args.gin_file) != 1 or not Path(args.gin_file[0]).is_file():
    raise errors.UserError(
        'Notes go into one gin file, which is named by its path.', '--header',
        'Give one --gin_file that is there.',
    )
  if any(map(_is_host, args.topology or ())):
    raise errors.UserError(
        'A CPU has neither a memory nor a time to note.', '--header',
        'Give slices of TPUs as --topology.',
    )


def _show(files: Sequence[Path], noted: Sequence[str]) -> None:
  """Prints reports; the file `noted`, if any, gets those of its name."""
  from moe_peft.compile import headers
  from moe_peft.compile import tables

  reports = []
  for file in files:
    with errors.refused('It is no file of --json.', file):
      found = json.loads(file.read_text(encoding='utf-8'))
      if not isinstance(found, list) or not found:
        raise ValueError('it holds no list of reports')
      for report in found:
        tables.summary_row(report)  # Judged here, where the file is known.
      reports += found
  for file in map(Path, noted):
    own = [
        x for x in reports
        if x.get('experiment') == file.stem and not _is_host(x['topology'])
    ]
    if not own:
      raise errors.UserError(
          f'No report is one of {file.stem} on a slice of TPUs.', '--show',
          'Give the file that --json has written for it.',
      )
    headers.write(file, own)
  tables.show_summary(reports)


def _load(args: argparse.Namespace) -> Callable[..., Any]:
  """Parses the gin files.

  Returns:
    What makes the step of the run for devices, with changed experts.
  """
  if args.t5x:
    from moe_peft.t5x import planning

    planning.load(
        args.gin_file, args.gin_bindings, args.gin_search_paths,
        args.trust_gin,
    )
    return planning.step
  from moe_peft.training import run
  from moe_peft.training import step_program

  flags.load_gin(args, MODEL_DIR='unused')
  return functools.partial(step_program.of_experiment, run.build())


def _compile(
    make_step: Callable[..., Any],
    topology: Any,
    execution: str | None,
    folder: Path | None,
) -> Mapping[str, Any]:
  from moe_peft.compile import compiled

  name = execution or 'configured'
  change = lambda module: module
  if execution is not None:
    change = lambda module: compiled.with_execution(module, execution)
  program = make_step(topology.devices(), change)
  file = folder and folder / f'{topology.name}_{name}.hlo.pb'
  return {'execution': name} | compiled.make_report(program, topology, file)
