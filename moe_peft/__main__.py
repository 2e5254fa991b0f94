# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`moe-peft COMMAND ...`: the console script over the command lines."""

from collections.abc import Sequence
import importlib
import sys

import moe_peft
from moe_peft.cli import flags

# These are also `python -m moe_peft.train` and so on, as T5X's users expect.
_DOORS = ('train', 'evaluate', 'infer')
_COMMANDS = {
    'plan': 'what a run would train, and what that takes',
    'aot': 'a training step compiled for TPUs, without one',
    'train': 'fine-tune a base with adapters, evaluate, report',
    'evaluate': 'score a finished or stopped run again',
    'infer': 'answer lines from a file or from standard input',
    'report': 'one HTML page of one or several runs',
    'study': 'run, resume and tabulate a folder of experiments',
    'ablate': 'the loss of a run without each of its experts',
    'prune': 'a run with fewer experts, and what they were worth',
    'save_base': 'write the parameters of a run as a base for others',
    'data': 'packages or local rows to caches of tasks',
    'hf': 'Hugging Face: import bases, export trained models, verify',
}


def dispatch(argv: Sequence[str]) -> int | None:
  """Runs the command that the first argument names."""
  usage = 'usage: moe-peft COMMAND [--help] ...\n\n' + '\n'.join(
      f'  {name:<10} {text}' for name, text in _COMMANDS.items()
  )
  if not argv or argv[0] in ('-h', '--help'):
    print(f'{moe_peft.__doc__}\n\n{usage}')
    return None
  command, *rest = argv
  if command not in _COMMANDS:
    print(f'moe-peft: no command {command!r}\n{usage}', file=sys.stderr)
    return 2
  room = 'moe_peft' if command in _DOORS else 'moe_peft.cli'
  return importlib.import_module(f'{room}.{command}').main(rest)


def main() -> None:
  """Entry point of the console script."""
  flags.run(dispatch)


if __name__ == '__main__':
  main()
