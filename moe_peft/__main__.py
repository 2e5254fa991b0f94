# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft COMMAND ...`, and the console script `moe-peft`."""

from collections.abc import Sequence
import difflib
import importlib

import moe_peft
from moe_peft import errors
from moe_peft.cli import flags

# These are also `python -m moe_peft.train` and so on, as T5X's users expect.
_DOORS = ('train', 'evaluate', 'infer')
_COMMANDS = {
    'init': 'a gin file for a first run on your own rows',
    'plan': 'what a run would train, and what that takes',
    'methods': 'each method on a model: parameters, exports, executions',
    't5x_config': 'an experiment as a gin file of t5x.train',
    'check': 'whether a configuration holds what it must, on a CPU',
    'aot': 'a training step compiled for TPUs, without one',
    'train': 'fine-tune a base with adapters, evaluate, report',
    'evaluate': 'score a finished or stopped run again',
    'infer': 'answer lines from a file or from standard input',
    'chat': 'talk with a trained run',
    'report': 'one HTML page of one or several runs',
    'study': 'run, resume and tabulate a folder of experiments',
    'evidence': 'one page of the results of all studies',
    'ablate': 'the loss of a run without each of its experts',
    'prune': 'a run with fewer experts, and what they were worth',
    'bank': 'LoRAs trained apart as frozen experts, and routers over them',
    'save_base': 'write the parameters of a run as a base for others',
    'drill': 'small runs are killed and damaged, and must lose nothing',
    'data': 'rows as the model sees them; packages to caches of tasks',
    'hf': 'Hugging Face: import bases, export trained models, verify',
}


def dispatch(argv: Sequence[str]) -> int | None:
  """Runs the command that the first argument names.

  Raises:
    errors.UserError: If there is no such command.
  """
  if not argv or argv[0] in ('-h', '--help'):
    print(f'{moe_peft.__doc__}\n\nusage: moe-peft COMMAND [--help] ...\n')
    for name, text in _COMMANDS.items():
      print(f'  {name:<10} {text}')
    print('\nexample: moe-peft train --gin_file=configs/quickstart.gin')
    return None
  command, *rest = argv
  if command not in _COMMANDS:
    near = difflib.get_close_matches(command, _COMMANDS, n=1, cutoff=0.4)
    raise errors.UserError(
        'There is no such command.',
        command,
        f'Did you mean {near[0]}?' if near else 'See moe-peft --help.',
    )
  room = 'moe_peft' if command in _DOORS else 'moe_peft.cli'
  return importlib.import_module(f'{room}.{command}').main(rest)


def main() -> None:
  """Entry point of the console script."""
  flags.run(dispatch)


if __name__ == '__main__':
  main()
