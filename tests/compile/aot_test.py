# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The training step compiled for a TPU slice, by the TPU compiler."""

import importlib.util
import json
import math

import jax
from jax.extend.core import jaxprs_in_params
import pytest

from moe_peft import gin_files
from moe_peft.cli import aot
from moe_peft.compile import collectives
from moe_peft.compile import compiled
from moe_peft.compile import costs
from moe_peft.compile import topologies
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import memory
from moe_peft.training import step_program
from moe_peft.training import train_step
from tests import refusals
from tests.training import tiny

QUICKSTART = '--gin_file=configs/quickstart.gin'

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None,
    reason="libtpu is not installed: pip install -e '.[tpu]'",
)


@pytest.mark.parametrize(
    ('name', 'chips', 'shape'),
    [('v4-64', 32, '2x4x4'), ('v5p-64', 32, '2x4x4'), ('v5e-16', 16, '4x4'),
     ('v5e-256', 256, '16x16'), ('v6e-8', 8, '2x4')],
)
def test_names_are_those_of_cloud_tpu(name, chips, shape):
  topology = topologies.find(name)
  assert (topology.num_chips, topology.shape) == (chips, shape)


def test_an_unknown_slice_names_near_ones():
  with refusals.refused('--topology', 'v5e-250', 'v5e-256'):
    aot.main([QUICKSTART, '--topology=v5e-250'])


def test_without_the_compiler_the_remedy_is_named(monkeypatch):
  monkeypatch.setattr(topologies.importlib.util, 'find_spec', lambda _: None)
  with refusals.refused('libtpu', "pip install -e '.[tpu]'"):
    aot.main([QUICKSTART, '--topology=v5e-8'])


@pytest.mark.slow
def test_a_layout_is_what_a_run_gets(tmp_path):
  experiment = tiny.experiment(
      tmp_path, NUM_EXPERT_PARTITIONS=2, NUM_MODEL_PARTITIONS=2,
      BASE_DTYPE='bfloat16',
  )
  setup = experiment_lib.lay_out(experiment)
  real = experiment_lib.prepare(experiment)
  shapes = lambda tree: jax.tree.map(
      lambda x: (x.shape, x.dtype, x.sharding), tree
  )
  assert shapes(setup.frozen) == shapes(real.frozen)
  assert shapes(train_step.abstract_state(setup)) == shapes(
      train_step.init_state(real)
  )
  # Half of the experts, and a quarter of the kernel's bytes in float32.
  path = 'encoder/layers_0/attention/query/'
  lora_a = {'x': setup.trainable[path + 'adapter/lora_a']}
  assert memory.num_bytes_of_device(lora_a) == 4 * 16 * 2 * 4 // 2
  kernel = {'x': setup.frozen[path + 'kernel']}
  assert memory.num_bytes_of_device(kernel) == 16 * 16 * 4 // 4


def test_what_a_user_decides_about_memory_is_in_the_report(tmp_path):
  """Also of a base whose type is none of JAX."""
  experiment = tiny.experiment(tmp_path, BASE_DTYPE='nf4', ATTENTION='chunked')
  setup = experiment_lib.lay_out(experiment)
  choices = step_program.of_setup(setup).choices
  assert choices['base_dtype'] == 'nf4'
  assert choices['attention'] == 'chunked'


@needs_libtpu
def test_a_small_step_for_eight_chips(tmp_path, capsys):
  bindings = tiny.SIZES | {
      'SCAN_LAYERS': True, 'REMAT_POLICY': 'full', 'BASE_DTYPE': 'bfloat16',
      't5.T5Config.num_encoder_layers': 3, 'NUM_MODEL_PARTITIONS': 2,
  }
  file = tmp_path / 'aot.json'
  status = aot.main([
      '--gin_file=gin/models/tiny_t5.gin', '--gin_file=gin/methods/molora.gin',
      '--gin_file=gin/runs/finetune.gin', '--topology=v5e-8',
      '--execution=all_experts', f'--json={file}', f'--hlo={tmp_path}',
      *(f'--gin.NAME={name}={value!r}' for name, value in bindings.items()),
  ])
  assert status is None
  assert 'Nothing was run or measured' in capsys.readouterr().out
  (report,) = json.loads(file.read_text())
  assert report['fits'] and report['mesh'] == {
      'data': 4, 'expert': 1, 'model': 2
  }
  assert report['remat_policy'] == 'full' and report['scan_layers']
  assert (tmp_path / 'v5e-8_all_experts.hlo.pb').stat().st_size > 10_000
  memory = report['memory']
  assert memory['state'] <= memory['aliased']  # All of it is donated.
  assert memory['by_kind']['outputs not donated'] < 2**16
  assert not report['not_counted']['loops of unknown length']
  assert not report['kernel_sized_collectives']
  assert 0 < report['flops']['adapter_share'] < 1
  # Encoder activations, [2 rows, 32, 16], cross the axis `model` in each of 3
  # layers after attention and MLP, and once more when attention is recomputed;
  # their gradients once before each of the two, however many adapted layers
  # read them. Keys and values of the decoder's layer, and the embedding: 2.
  sent = [
      row['count'] for row in report['collectives']['largest']
      if row['array'] == 'f32[2,32,16]' and row['of'] == 'network'
  ]
  assert sent == [3 * (2 + 1 + 2) + 2]


def _sent(*shape, op_name='encoder/attention/query/dot_general'):
  return collectives.Collective(
      kind='all-reduce', shape=shape, dtype='f32', bytes=0, times=3, traffic=0,
      group_size=4, op_name=op_name,
  )


@pytest.mark.parametrize('scan', [True, False])
def test_collectives_of_the_shape_of_a_kernel(tmp_path, scan):
  """As a device sees them: half of each kernel, on the axis `model`."""
  setup = step_program.of_setup(experiment_lib.lay_out(tiny.experiment(
      tmp_path, NUM_MODEL_PARTITIONS=2, SCAN_LAYERS=scan,
      **{'t5.T5Config.num_encoder_layers': 3, 't5.T5Config.emb_dim': 24,
         't5.T5Config.num_heads': 4, 't5.T5Config.mlp_dim': 40},
  )))
  layer = 'encoder/encoder' if scan else 'encoder/layers_0'

  def find(*shape, **kwargs):
    found = costs._kernel_sized(setup, [_sent(*shape, **kwargs)])
    assert set(found.values()) <= {3}
    return set(found)

  wi, logits = f'{layer}/mlp/wi_0/kernel', 'decoder/logits_dense/kernel'
  whole = setup.frozen[wi]
  for shape in [(24, 20), (20, 24), (1, 24, 40),
                whole.sharding.shard_shape(whole.shape)]:
    assert wi in find(*shape), shape
  # Heads are joined at either end, [embed, heads * kv] and [heads * kv, embed].
  for name in ('query', 'out'):
    assert f'{layer}/attention/{name}/kernel' in find(24, 2 * 8), name
  assert find(24, 384 // 2) == {logits}
  # Rows of activations, two layers of three, what an adapter sends, and what is
  # left of a kernel where an axis is taken for that of the layers.
  for shape in [(8, 32, 24), (2, 24, 20), (20,), (24,), (192,), ()]:
    assert not find(*shape), shape
  assert not find(24, 20, op_name='query/adapter/dot_general')


@pytest.mark.slow
def test_flops_are_those_of_the_traced_step(tmp_path):
  experiment = tiny.experiment(
      tmp_path, SCAN_LAYERS=True, REMAT_POLICY='full',
      **{'t5.T5Config.num_encoder_layers': 3},
  )
  setup = experiment_lib.lay_out(experiment, jax.devices()[:1])
  step = step_program.of_setup(setup)
  counted = compiled.make_report(step, topologies.find('v5e-1'))
  with setup.context():
    traced = train_step.make_train_step(setup).trace(
        train_step.abstract_state(setup), setup.frozen,
        train_step.abstract_batch(setup),
    )
  expected = products_of(traced.jaxpr.jaxpr)
  # XLA leaves out what nobody reads, such as gradients of the first inputs.
  assert 0.9 * expected < counted['flops']['per_device'] <= expected
  assert not counted['not_counted']['loops of unknown length']
  assert counted['collectives']['bytes'] == 0
  memory = counted['memory']
  assert 0 < memory['state'] <= memory['aliased'] < memory['total']


def products_of(jaxpr):
  """Floating-point operations of all products, trips of scans included."""
  flops = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      (contracted, _), _ = equation.params['dimension_numbers']
      lhs = equation.invars[0].aval.shape
      flops += 2 * equation.outvars[0].aval.size * math.prod(
          lhs[axis] for axis in contracted
      )
    trips = equation.params.get('length', 1)
    for inner in jaxprs_in_params(equation.params):
      flops += trips * products_of(inner)
  return flops


@pytest.mark.slow
def test_reports_of_earlier_are_shown(capsys, tmp_path):
  file = 'results/aot/small_executions_v5e-8.json'
  assert aot.main(['--show', str(gin_files.resource(file))]) is None
  shown = capsys.readouterr().out
  assert shown.count('| v5e-8') == 3 and '0.003 compute' in shown
  with refusals.refused(str(tmp_path / 'no.json')):
    aot.main(['--show', str(tmp_path / 'no.json')])
  for text in ('{"a": 1}', '[{"mesh": {}}]', '7'):
    (tmp_path / 'other.json').write_text(text)
    with refusals.refused(str(tmp_path / 'other.json')):
      aot.main(['--show', str(tmp_path / 'other.json')])
  with refusals.refused('--topology'):
    aot.main([QUICKSTART])
