# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What all command lines share: the flags for gin files, clear errors.

The flags are those of T5X: `--gin_file` (repeated), `--gin.NAME=VALUE`,
`--gin_search_paths`.
"""

import argparse
from collections.abc import Callable, Sequence
import logging
import os
from pathlib import Path
import re
import sys
import traceback
from typing import Any, NoReturn

from moe_peft import errors
from moe_peft import gin_files
from moe_peft import gin_trust
from moe_peft import signals
from moe_peft.cli import machine_errors
from moe_peft.runs import t5x_run

_DEBUG = '--debug'


class Parser(argparse.ArgumentParser):
  """A parser whose errors are user errors of one line."""

  def __init__(self, *args: Any, epilog: str | None = None, **kwargs: Any):
    """Takes the arguments of argparse."""
    note = f'{_DEBUG} after any command shows the stack trace of an error.'
    epilog = '\n'.join(filter(None, [epilog, note]))
    super().__init__(*args, epilog=epilog, **kwargs)

  def parse_known_args(self, args=None, namespace=None):
    """Refuses homes of users that there are not, whatever the flag."""
    for arg in args or ():
      flag, equals, value = arg.partition('=')
      path = value if equals and flag.startswith('-') else arg
      user = path.partition('/')[0]
      # A text, as that of --system, may also begin with ~. Names of users have
      # no space.
      if ' ' not in user and os.path.expanduser(user).startswith('~'):
        raise errors.UserError(
            'There is no such user.', arg, 'Write the path without ~.'
        )
    return super().parse_known_args(args, namespace)

  def error(self, message: str) -> NoReturn:
    """Raises errors.UserError for what argparse has found."""
    argument, what = re.fullmatch(
        r'(?:argument ([^:]+): )?(.*)', message, re.DOTALL
    ).groups()
    raise errors.UserError(
        f'{what.rstrip(".")}.', argument or '', f'See {self.prog} --help.'
    )


def make_parser(command: str, description: str, example: str) -> Parser:
  """A parser of one command line.

  Args:
    command: What follows `python -m `.
    description: What it does.
    example: Arguments that a user may try.
  """
  return Parser(
      prog=f'python -m {command}',
      description=description,
      epilog=f'example: python -m {command} {example}',
  )


def whole_number(minimum: int) -> Callable[[str], int]:
  """Type of a flag that takes a whole number, of at most 32 bits."""

  def parse(text: str) -> int:
    is_short = re.fullmatch(r'-?\d{1,20}', text)
    if not is_short or not minimum <= int(text) < 2**31:
      raise argparse.ArgumentTypeError(
          f'{text} is no whole number of at least {minimum}, below 2**31'
      )
    return int(text)

  return parse


def positive_number(text: str) -> float:
  """Type of a flag that takes a finite number above zero."""
  try:
    value = float(text)
  except ValueError:
    value = 0.0
  if not 0 < value < float('inf'):
    raise argparse.ArgumentTypeError(f'{text} is no number above 0')
  return value


def output_file(ending: str) -> Callable[[str], Path]:
  """Type of a flag that names a file to write, of a kind such as '.html'."""

  def parse(text: str) -> Path:
    path = Path(text).expanduser()
    if path.is_dir():
      raise argparse.ArgumentTypeError(
          f'{text} is a folder; name a file in it, or another one'
      )
    if path.exists() and not path.is_file():  # A device would be replaced.
      raise argparse.ArgumentTypeError(f'{text} is no ordinary file')
    if path.suffix != ending:  # A file of another kind would be replaced.
      raise argparse.ArgumentTypeError(f'{text} does not end in {ending}')
    output_folder(str(path.absolute().parent))
    return path

  return parse


def output_folder(text: str) -> Path:
  """Type of a flag that names a folder to write, which need not exist."""
  path = Path(text).expanduser()
  there = next(
      x for x in (path.absolute(), *path.absolute().parents) if x.exists()
  )
  if not there.is_dir():
    raise argparse.ArgumentTypeError(f'{text}: {there} is no folder')
  if not os.access(there, os.W_OK):
    raise argparse.ArgumentTypeError(f'{text}: {there} cannot be written to')
  return path


def add_gin_flags(parser: argparse.ArgumentParser) -> None:
  """Adds T5X's gin flags to a parser."""
  parser.add_argument(
      '--gin_file', action='append', default=[], metavar='FILE',
      help='gin file, by path or by the name it ships under; may be repeated, '
      'the later one wins',
  )
  parser.add_argument(
      '--gin.NAME', dest='gin_bindings', action='append', default=[],
      metavar='VALUE',
      help='sets a gin macro or binding, for example --gin.TRAIN_STEPS=100',
  )
  parser.add_argument(
      '--gin_search_paths', default='', metavar='DIR,DIR',
      help='more folders in which gin files are looked for',
  )
  parser.add_argument(
      '--trust_gin', action='store_true',
      help='runs the config.gin of a run as the code that it is, whatever it '
      'imports; by default it may only name the parts of experiments',
  )


def add_sampling_flags(
    parser: argparse.ArgumentParser, temperature: float | None, when: str
) -> None:
  """Adds --temperature and --seed.

  Args:
    parser: The command's.
    temperature: The default.
    when: Says in the help of --temperature when it counts.
  """
  parser.add_argument(
      '--temperature', type=positive_number, default=temperature, metavar='T',
      help=f'of the samples ({when})',
  )
  parser.add_argument(
      '--seed', type=whole_number(0), default=0, metavar='N',
      help='of the samples (default: 0)',
  )


def add_force_flag(parser: argparse.ArgumentParser) -> None:
  """Adds --force to a command that writes a folder."""
  parser.add_argument(
      '--force', action='store_true',
      help='replace the folder if it exists; the old one is kept as NAME.old',
  )


def rewrite_gin_args(args: Sequence[str]) -> list[str]:
  """Rewrites `--gin.NAME=VALUE` to the flag that argparse knows.

  Raises:
    errors.UserError: For a `--gin.NAME` without a value.
  """
  rewritten = []
  for arg in args:
    if arg.startswith('--gin.') and arg != '--gin.NAME':
      if '=' not in arg:
        raise errors.UserError(
            f'{arg} has no value.', arg, f'Write it as {arg}=VALUE.'
        )
      rewritten.append('--gin.NAME=' + arg.removeprefix('--gin.'))
    else:
      rewritten.append(arg)
  return rewritten


def run(main: Callable[[Sequence[str]], int | None]) -> None:
  """Runs a command line; user errors end it in one line with status 2.

  `--debug` shows the stack trace of the error too. Signals end it as `signals`
  says.
  """
  signals.watch()
  for name, mode in (('stdin', 'r'), ('stdout', 'w'), ('stderr', 'w')):
    if getattr(sys, name) is None:  # Closed by the shell, as in `<&-`.
      setattr(sys, name, open(os.devnull, mode))
  debug = _DEBUG in sys.argv[1:]
  args = [arg for arg in sys.argv[1:] if arg != _DEBUG]
  try:
    import absl.logging

    # SeqIO and Orbax log much that helps nobody here, such as tracebacks of
    # errors that they also raise.
    absl.logging.set_verbosity(absl.logging.FATAL)
    status = main(rewrite_gin_args(args)) or 0
    sys.stdout.flush()
    sys.exit(status)
  except BaseException as error:
    if (number := signals.ended_by(error)) is not None:
      signals.leave(number)
    if isinstance(error, BrokenPipeError):  # For example `... | head`.
      sys.exit(1)
    is_said = isinstance(error, errors.UserError)
    said = error if is_said else machine_errors.explain(error)
    if said is None:
      raise
    if debug:
      traceback.print_exception(error)
    print(f'error: {said}', file=sys.stderr)
    sys.exit(2)
  finally:
    signals.done()


def show_notes() -> None:
  """Prints what the package notes of its input: formats, what is left out."""
  logger = logging.getLogger('moe_peft')
  logger.handlers = [logging.StreamHandler()]
  logger.setLevel(logging.INFO)
  logger.propagate = False  # TensorFlow gives the root a handler too.


def load_gin(args: argparse.Namespace, **defaults: Any) -> None:
  """Loads the configuration that the gin flags describe.

  Args:
    args: Parsed arguments with the gin flags.
    **defaults: Values of macros that the flags may override.

  Raises:
    errors.UserError: If there is no gin file, or for what it has wrong.
  """
  require_gin_file(args)
  gin_files.load_gin(
      args.gin_file, args.gin_bindings, args.gin_search_paths, args.trust_gin,
      defaults,
  )


def require_gin_file(args: argparse.Namespace) -> None:
  """Raises errors.UserError if no gin file is given."""
  if not args.gin_file:
    raise errors.UserError(
        'There is no gin file.', '--gin_file',
        'Give at least one, for example configs/quickstart.gin.',
    )


def load_run(args: argparse.Namespace, of_t5x: bool = False) -> None:
  """Loads the configuration of a run, `RUN/config.gin`, and what is given.

  Args:
    args: Parsed arguments with `run` and the gin flags.
    of_t5x: Whether it may be a run of T5X: the gin files that are given are the
      configuration then.

  Raises:
    errors.UserError: If there is no such run, or for wrong bindings.
  """
  folder = Path(args.run).expanduser()
  config = folder / gin_trust.FILE
  if not config.is_file():
    raise errors.UserError(
        'This folder is no run: it holds no config.gin.', args.run,
        'Give the MODEL_DIR of a training run.',
    )
  if not config.stat().st_size:
    raise errors.UserError(f'{config} is empty.', config, 'Put back a copy.')
  if t5x_run.checkpoints(folder):
    _check_t5x_run(config, bool(args.gin_file), of_t5x)
    files, has_checkpoint = args.gin_file, True
  else:
    files = [str(config), *args.gin_file]
    has_checkpoint = (folder / 'checkpoints').is_dir()
  gin_files.load_gin(
      files,
      args.gin_bindings,
      args.gin_search_paths,
      args.trust_gin,
      {'MODEL_DIR': args.run},
  )
  if not has_checkpoint:
    raise errors.UserError(
        'The run has no checkpoint.', args.run, 'Train it first.'
    )


def _check_t5x_run(config: Path, given: bool, read: bool) -> None:
  """Refuses a run of T5X that a command does not read, or not without files."""
  if not read or not given:
    raise errors.UserError(
        'It is of a run of T5X' + ('.' if read else ', which this command does '
        'not read.'), config,
        'Add --gin_file with the experiment as python -m moe_peft.train '
        'reads it, or read the run with python -m t5x.eval or t5x.infer.'
        if read else 'Export it with python -m moe_peft hf export.',
    )
