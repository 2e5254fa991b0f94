# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What `aot --t5x` compiles is what `t5x.train` compiles."""

import functools
import hashlib
import importlib.util
import json
import re
import types

import jax
import pytest

from moe_peft.cli import aot
from moe_peft.compile import topologies
from tests import refusals
from tests.t5x import networks
from tests.t5x import training

pytest.importorskip('t5x')
partitioners = pytest.importorskip('moe_peft.t5x.partitioners')
planning = pytest.importorskip('moe_peft.t5x.planning')
pytestmark = pytest.mark.t5x

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None,
    reason="libtpu is not installed: pip install -e '.[tpu]'",
)
# Little to compile.
FEW_SITES = "SITES = '.*/self_attention/query'\nNUM_EXPERTS = 4\nRANK = 2\n"


def _chips(*sides):
  """Devices of a slice, as T5X looks at them."""
  return [
      types.SimpleNamespace(coords=(x, y, z), core_on_chip=0)
      for z in range(sides[2]) for y in range(sides[1]) for x in range(sides[0])
  ]


@pytest.mark.parametrize(
    ('sides', 'size', 'tile'),
    [
        ((16, 16, 1), 1, (1, 1, 1, 1)),
        ((16, 16, 1), 4, (2, 2, 1, 1)),
        ((2, 4, 4), 4, (2, 2, 1, 1)),
        ((2, 4, 4), 8, (2, 2, 2, 1)),
        ((2, 4, 1), 8, (2, 4, 1, 1)),
    ],
)
def test_tiles_are_compact(sides, size, tile):
  assert partitioners._tile(_chips(*sides), size) == tile


def test_a_tile_that_does_not_divide():
  with refusals.refused('NUM_MODEL_PARTITIONS', '3', '4x4x1'):
    partitioners._tile(_chips(4, 4, 1), 3)


@needs_libtpu
@pytest.mark.parametrize('name', ['v4-16', 'v5p-16', 'v5e-16', 'v6e-8'])
def test_meshes_of_slices(name):
  """T5X has no mesh for v5e, v5p and v6e."""
  devices = topologies.find(name).devices()
  made = partitioners.Partitioner(num_partitions=4)
  made.devices = devices
  assert made.mesh.shape == {'data': len(devices) // 4, 'model': 4}
  # A replica of the model lies on one host.
  for replica in made.mesh.devices:
    assert len({device.process_index for device in replica}) == 1
  by_experts = partitioners.ExpertPartitioner(2, num_partitions=2)
  by_experts.devices = devices
  assert by_experts.mesh.shape == {
      'data': len(devices) // 4, 'expert': 2, 'model': 2
  }


def _canonical(lowered):
  """The text of a program, whatever JAX has called its functions."""
  bodies = dict(re.findall(
      r'func\.func \w+ @([\w.]+)(.*?\n  })\n', lowered.as_text(), re.DOTALL
  ))

  @functools.cache
  def text_of(name):
    return re.sub(
        r'call @([\w.]+)',
        lambda m: hashlib.sha256(text_of(m[1]).encode()).hexdigest(),
        bodies[name],
    )

  return text_of('main')


class _Compiles(Exception):
  """Ends a run of T5X where it would compile its step."""


@pytest.mark.parametrize(
    ('network', 'more'),
    [
        ('examples.t5', ''),
        ('llama', 'SCAN_LAYERS = True\nNUM_MICROBATCHES = 2\n'),
    ],
)
def test_the_step_is_that_of_the_trainer(tmp_path, monkeypatch, network, more):
  found = []

  def compile_step(partitioner, function, state, batch):
    del partitioner
    found.append(_canonical(function.lower(state, batch)))
    raise _Compiles

  monkeypatch.setattr(partitioners.Partitioner, 'compile', compile_step)
  macros = {
      'MODEL_DIR': str(tmp_path / 'run'), 'INITIAL_CHECKPOINT_PATH': None,
      'TRAIN_STEPS': 2, 'NUM_MODEL_PARTITIONS': 2,
  }
  config = networks.adapted('molora', network, more=FEW_SITES + more)
  with training.configured(
      'train', config, tmp_path / 'gin', **macros
  ) as train:
    step = planning.step()
    with pytest.raises(_Compiles):
      train()
  assert _canonical(step.lower()) == found[0]
  assert step.mesh.shape['model'] == 2
  assert all('query' in path for path in step.trained)
  # Two moments of what trains, and counts.
  size = lambda tree: sum(x.size for x in jax.tree.leaves(tree) if x.ndim)
  assert size(step.optimizer) == 2 * size(step.trained)


def test_a_file_of_the_embedded_engine_is_refused():
  with refusals.refused('configs/quickstart.gin', '--t5x'):
    planning.load(['configs/quickstart.gin'], [], '')


@pytest.mark.slow
def test_a_slice_of_the_host(tmp_path, capsys):
  leaf, file = tmp_path / 'leaf.gin', tmp_path / 'aot.json'
  leaf.write_text(
      networks.adapted(
          'molora', more=f'{FEW_SITES}{training.DATA}BATCH_SIZE = 8\n'
      )
  )
  training.add_task()
  status = aot.main([
      '--t5x', f'--gin_file={leaf}', '--topology=host-4', f'--json={file}',
      '--gin.NAME=TRAIN_STEPS=2', '--gin.NAME=BASE_DTYPE=bfloat16',
      '--gin.NAME=NUM_MODEL_PARTITIONS=2',
  ])
  assert status is None
  assert 'host-4' in capsys.readouterr().out
  (report,) = json.loads(file.read_text())
  assert report['fits'] and report['roofline'] is None
  assert report['mesh'] == {'data': 2, 'expert': 1, 'model': 2}
  assert report['packing'] and report['base_dtype'] == 'bfloat16'
  memory = report['memory']
  assert memory['state'] <= memory['aliased']  # All of it is donated.
  assert 0 < report['flops']['adapter_share'] < 1
