# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of what all command lines share: help, flags, errors, Ctrl-C."""

import errno
import io
import signal
import subprocess
import sys
import time

import pytest

from moe_peft import __main__ as main
from moe_peft.cli import flags
from tests import refusals

ALL = ('', *main._COMMANDS)


def test_gin_flags_are_rewritten_as_in_t5x():
  assert flags.rewrite_gin_args(['--gin.A=b=c', '--x']) == [
      '--gin.NAME=A=b=c',
      '--x',
  ]
  with refusals.refused('--gin.A', '--gin.A=VALUE'):
    flags.rewrite_gin_args(['--gin.A'])


@pytest.mark.parametrize(
    ('command', 'flag', 'values'),
    [
        ('infer run', '--beams', ['-1', '0', 'x', '1.5', '3000000000']),
        ('infer run', '--temperature', ['0', '-1', 'nan', 'inf', 'hot']),
        ('infer run', '--seed', ['-1', 'x']),
        ('infer run', '--decode', ['magic']),
        ('ablate run', '--rows', ['0', '-3', 'x']),
        ('prune run --out=out', '--keep', ['0', 'x']),
        ('plan', '--devices', ['0', '-8', 'x']),
        ('study configs/words', '--jobs', ['0']),
        ('aot --topology=v5e-8', '--execution', ['magic']),
        # As root, a device would be replaced by a file.
        ('report run', '--out', ['/dev/null', '/dev/full', '.']),
    ],
)
def test_a_wrong_value_of_a_flag_is_named(command, flag, values):
  for value in values:
    with refusals.refused(flag, value):
      main.dispatch([*command.split(), f'{flag}={value}'])


def test_an_output_without_room_is_one_line(monkeypatch, capsys):
  class Full(io.StringIO):
    def flush(self):
      raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr('sys.stdout', Full())
  monkeypatch.setattr('sys.argv', ['moe-peft'])
  with pytest.raises(SystemExit) as ended:
    flags.run(lambda argv: print('answer'))
  said = capsys.readouterr().err
  assert ended.value.code == 2 and 'Traceback' not in said
  assert 'error: output: No space left on device.' in said


def test_a_file_that_the_system_does_not_open_is_one_line(
    monkeypatch, capsys, tmp_path
):
  monkeypatch.setattr('sys.argv', ['moe-peft'])
  file = tmp_path / ('x' * 300)
  with pytest.raises(SystemExit) as ended:
    flags.run(lambda argv: print(file.read_text()))
  said = capsys.readouterr().err
  assert ended.value.code == 2 and said.count('\n') == 1
  assert said.startswith(f'error: {file}: ')
  with pytest.raises(FileNotFoundError):  # Nobody looked: a fault of ours.
    flags.run(lambda argv: print((tmp_path / 'x').read_text()))


def test_streams_that_the_shell_has_closed_are_empty(monkeypatch):
  monkeypatch.setattr('sys.argv', ['moe-peft'])
  for name in ('stdin', 'stdout'):
    monkeypatch.setattr(f'sys.{name}', None)
  with pytest.raises(SystemExit) as ended:
    flags.run(lambda argv: print(sys.stdin.read()))
  assert ended.value.code == 0


def test_what_is_missing_or_unknown_is_named():
  with refusals.refused('', 'RUN', 'moe_peft ablate --help'):
    main.dispatch(['ablate'])
  with refusals.refused('', '--rwos=3'):
    main.dispatch(['ablate', 'run', '--rwos=3'])
  for command in ('train', 'plan', 'aot --topology=v5e-8'):
    with refusals.refused('--gin_file', 'configs/quickstart.gin'):
      main.dispatch(command.split())


def test_a_text_may_begin_as_the_home_of_somebody():
  parser = flags.Parser()
  parser.add_argument('--system')
  for args in (['--system', '~20 words'], ['--system=~20 words']):
    assert parser.parse_args(args).system == '~20 words'
  with refusals.refused('~no_such_user/a folder'):
    parser.parse_args(['--system', '~no_such_user/a folder'])


@pytest.mark.parametrize(
    ('command', 'near'), [('trian', 'train'), ('evalute', 'evaluate')]
)
def test_an_unknown_command_names_the_nearest(command, near):
  with refusals.refused(command, near):
    main.dispatch([command])


def test_a_device_that_is_too_small_is_no_stack_trace(monkeypatch, capsys):
  """A real one: this machine's memory, of which too much is asked."""
  import jax
  import jax.numpy as jnp

  def too_much(argv):
    jax.block_until_ready(jax.jit(lambda: jnp.zeros(2**45))())

  monkeypatch.setattr(sys, 'argv', ['moe-peft'])
  with pytest.raises(SystemExit) as ended:
    flags.run(too_much)
  said = capsys.readouterr().err
  assert ended.value.code == 2 and said.count('\n') == 1
  for name in ('140737488355328 bytes', 'BATCH_SIZE', 'NUM_MICROBATCHES',
               'EVAL_BATCH_SIZE', 'REMAT_POLICY', 'BASE_DTYPE'):
    assert name in said
  # Whatever else a device says is a fault of ours, and has a trace.
  fault = jax.errors.JaxRuntimeError('INTERNAL: something else')
  with pytest.raises(jax.errors.JaxRuntimeError):
    flags.run(lambda argv: (_ for _ in ()).throw(fault).__next__())


def test_help_is_quick_and_loads_no_jax():
  code = (
      'import sys\n'
      'from moe_peft import __main__ as main\n'
      f'for command in {ALL!r}:\n'
      '  try: main.dispatch(command.split() + ["--help"])\n'
      '  except SystemExit as exit: assert not exit.code\n'
      'assert "jax" not in sys.modules and "numpy" not in sys.modules\n'
  )
  result = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True, timeout=60
  )
  assert result.returncode == 0, result.stderr
  assert result.stdout.count('usage') == len(ALL)
  # Each help ends with an example that can be typed in.
  assert result.stdout.count('example') >= len(ALL)


@pytest.mark.slow
def test_a_user_error_costs_no_trace():
  result = subprocess.run(
      [sys.executable, '-m', 'moe_peft.train', '--gin_file=nowhere.gin'],
      capture_output=True,
      text=True,
      timeout=120,
  )
  assert result.returncode == 2
  assert result.stderr.startswith('error: ') and 'nowhere.gin' in result.stderr
  assert result.stderr.count('\n') == 1


@pytest.mark.parametrize(
    'args', [['trian'], ['hf', 'import'], ['train', '--gin_file=x.gin']]
)
def test_debug_shows_the_trace_too(args, monkeypatch, capsys):
  for debug in ([], ['--debug']):
    monkeypatch.setattr('sys.argv', ['moe-peft', *args, *debug])
    with pytest.raises(SystemExit) as ended:
      flags.run(main.dispatch)
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert ('Traceback' in err) == bool(debug)
    assert err.rstrip().split('\n')[-1].startswith('error: ')


@pytest.mark.slow
def test_ctrl_c_while_modules_are_imported_costs_no_trace(tmp_path):
  with subprocess.Popen(
      [sys.executable, '-m', 'moe_peft.train',
       '--gin_file=configs/quickstart.gin', f'--gin.MODEL_DIR={tmp_path}'],
      stderr=subprocess.PIPE, text=True,
      # A job in the background ignores Ctrl-C, and so would its children.
      preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
  ) as process:
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
  assert (process.returncode, err) == (130, 'Interrupted.\n')
