# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of bases that are read and of what fails while saving."""

import contextlib
import json
import os
import resource
import shutil

from clu.data import dataset_iterator
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tensorflow as tf

from moe_peft import atomic
from moe_peft import errors
from moe_peft import gin_files
from moe_peft.core import partitioning
from moe_peft.training import base_identity
from moe_peft.training import bases
from moe_peft.training import checkpoints
from moe_peft.training import checksums
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import loop
from moe_peft.training import tensor_files
from tests import refusals
from tests.training import tiny

BASE = {
    'encoder/kernel': np.arange(6, dtype=np.float32).reshape(2, 3) / 8,
    'encoder/scale': np.ones(3, np.float32),
}


def test_a_base_round_trips_in_bfloat16(tmp_path):
  bases.save_base(BASE, tmp_path)
  read = bases.load_base(str(tmp_path), BASE)
  assert read.keys() == BASE.keys()
  for name, value in read.items():
    assert value.dtype == ml_dtypes.bfloat16
    # Multiples of 1/8 below 8 have at most 6 significant bits.
    np.testing.assert_array_equal(value.astype(np.float32), BASE[name])


def test_an_orbax_checkpoint_is_a_base(tmp_path):
  with ocp.PyTreeCheckpointer() as checkpointer:
    checkpointer.save(
        tmp_path / 'base',
        {'encoder': {k.split('/')[1]: v for k, v in BASE.items()}},
    )
  read = bases.load_base(str(tmp_path / 'base'), BASE)
  for name, value in BASE.items():
    np.testing.assert_array_equal(read[name], value)


@pytest.mark.parametrize('damage', ['', 'not JSON'])
def test_an_orbax_checkpoint_without_metadata_is_refused(tmp_path, damage):
  state = bases.write_t5x(BASE, tmp_path) / 'state'
  file = state / '_METADATA'
  # The other file still says that it is one.
  (state / '_CHECKPOINT_METADATA').touch()
  file.write_text(damage) if damage else file.unlink()
  for read in (lambda: bases.load_base(str(tmp_path), BASE),
               lambda: bases.read_orbax(state)):
    with refusals.refused(state, '_METADATA'):
      read()


@pytest.mark.slow
def test_the_small_base_ships_and_fits_its_model(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  plain = tiny.experiment(
      tmp_path, 'lora', INITIAL_CHECKPOINT_PATH='bases/tiny_t5',
      **tiny.FULL_SIZES,
  )
  setup = experiment_lib.prepare(plain)
  assert setup.base['parameters'] == 1_575_296
  stored = bases.load_base('bases/tiny_t5', setup.frozen)
  for name, value in setup.frozen.items():
    np.testing.assert_array_equal(value, stored[name].astype(np.float32))


def test_other_files_are_refused_by_name(tmp_path):
  nowhere = tmp_path / 'none'
  with refusals.refused('INITIAL_CHECKPOINT_PATH', nowhere):
    bases.load_base(str(nowhere), BASE)
  with refusals.refused(tmp_path, bases.BASE_FILE):
    bases.load_base(str(tmp_path), BASE)
  file = bases.save_base(BASE, tmp_path)
  file.write_bytes(file.read_bytes()[:-8])
  with refusals.refused(file, 'truncated'):
    bases.load_base(str(tmp_path), BASE)


def test_another_model_is_refused_with_what_differs(tmp_path):
  bases.save_base(BASE, tmp_path)
  expected = {
      'encoder/kernel': jnp.zeros((3, 3)), 'decoder/scale': jnp.zeros(3)
  }
  with refusals.refused(
      'INITIAL_CHECKPOINT_PATH',
      'missing: decoder/scale',
      'not in the model: encoder/scale',
      'encoder/kernel is (2, 3) there and (3, 3) in the model',
  ):
    bases.load_base(str(tmp_path), expected)


def test_adapters_alone_are_no_base(tmp_path):
  bases.save_base({'encoder/adapter/lora_a': np.ones((2, 3))}, tmp_path)
  with refusals.refused('INITIAL_CHECKPOINT_PATH', 'adapters', 'MODEL_DIR'):
    bases.load_base(str(tmp_path), BASE)


def test_layers_that_lie_otherwise_name_the_macro():
  one_by_one = {f'decoder/layers_{i}/mlp/wo/kernel': (4, 2) for i in range(2)}
  scanned = {'decoder/decoder/mlp/wo/kernel': (4, 2, 2)}
  for given, expected, value in (
      (one_by_one, scanned, False), (scanned, one_by_one, True)
  ):
    structs = {
        k: jax.ShapeDtypeStruct(v, np.float32) for k, v in expected.items()
    }
    with refusals.refused(
        'INITIAL_CHECKPOINT_PATH', f'SCAN_LAYERS = {value}'
    ):
      bases.check_shapes('a base', given, structs)


def test_the_identity_knows_a_changed_base():
  first = base_identity.of('', BASE)
  assert first == base_identity.of('', dict(reversed(BASE.items())))
  changed = BASE | {'encoder/kernel': BASE['encoder/kernel'] + 1}
  assert first['sha256'] != base_identity.of('', changed)['sha256']
  assert json.loads(json.dumps(first)) == first
  assert base_identity.of(None, {})['sha256'] is None


def test_the_identity_knows_every_byte(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  base = {'x': np.zeros(5000, np.float32)}
  bases.save_base(base, tmp_path / 'base')
  read = lambda: base_identity.of(
      str(tmp_path / 'base'), bases.read_arrays(tmp_path / 'base')
  )
  first = read()
  with monkeypatch.context() as patch:
    patch.setattr(tensor_files.LazyArrays, '__getitem__', None)
    assert read() == first  # It is read and hashed once.
  for file in (tmp_path / 'cache').rglob('*.json'):
    file.write_text('{}')
  assert read() == first  # What remembers it is no authority.
  base['x'][2500] = 1
  bases.save_base(base, tmp_path / 'base')
  second = read()
  assert second['sha256'] == first['sha256']
  assert second['content'] != first['content']
  # A change in place that keeps size and time of change, as some tools do.
  file = tmp_path / 'base' / bases.BASE_FILE
  before, content = file.stat(), bytearray(file.read_bytes())
  content[-10_000] ^= 1
  file.write_bytes(content)
  os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
  assert read()['content'] not in (first['content'], second['content'])
  assert not base_identity.is_same(first, second)
  assert base_identity.is_same(first, {**first, 'path': 'elsewhere'})
  # A run of a version that hashed samples only.
  del first['content']
  assert base_identity.is_same(first, second)


def test_the_identity_is_that_of_older_runs():
  """The digest of tiny_t5 in a run.json of 2026-11, of the flat bytes."""
  file = gin_files.resource('bases/tiny_t5') / bases.BASE_FILE
  known = base_identity.of('', bases.read_arrays(file))
  assert known['sha256'].startswith('6e7f387d80cd62ea8cbe47ab8986726d5a67096')


@pytest.mark.parametrize(
    'shape', [(), (3,), (5000,), (3, 4096), (2000, 3), (2, 3, 2000), (1, 1, 9)]
)
def test_the_identity_is_the_same_on_devices(shape):
  """Both ends of the flat array, whatever its shape, sharded or not."""
  random = np.random.default_rng(0)
  params = {'x': random.normal(size=shape).astype(np.float32)}
  flat = params['x'].reshape(-1).view(np.uint8)
  ends = [x.tobytes() for x in (flat[:4096], flat[-4096:])]
  found = [base_identity._end(params['x'], side) for side in (1, -1)]
  assert [np.ascontiguousarray(x).tobytes() for x in found] == ends
  mesh = partitioning.make_mesh()
  split = shape and shape[0] % 8 == 0
  sharding = partitioning.batch_sharding(mesh) if split else None
  placed = jax.device_put(params, sharding)
  here = base_identity.of('', params)
  del here['content']  # On devices there are samples only.
  assert base_identity.of('', placed, mesh) == here


def test_only_what_a_disk_refuses_is_its_fault():
  """As tensorstore says it; a bug shall not look like a full disk."""
  said = "Error writing \"x\": [os_error_code='28' ENOSPC] [tensorstore=1]"
  with pytest.raises(OSError, match='No space left') as info, bases.writing():
    raise ValueError(f'RESOURCE_EXHAUSTED: {said}')
  assert info.value.errno == 28
  with pytest.raises(ValueError, match='a bug'), bases.writing():
    raise ValueError('a bug')


def test_of_an_identity_the_first_change_is_named():
  one = {'a': [4, 2], 'b': {'c': 1, 'd': 2}}
  change = lambda other: checkpoints._change('shapes', one, other)
  assert change({**one, 'b': {'c': 1, 'd': 3}}) == 'd was 2 and now is 3'
  assert change({'b': one['b']}) == 'a was [4, 2] and now is None'


def test_data_that_have_moved_are_named(tmp_path):
  file, state = tmp_path / 'rows.tfrecord', {'x': jnp.zeros(3)}
  with tf.io.TFRecordWriter(str(file)) as writer:
    for row in (b'one', b'two', b'three'):
      writer.write(row)

  def rows():
    dataset = tf.data.TFRecordDataset(str(file)).map(lambda row: {'row': row})
    return dataset_iterator.TfDatasetIterator(dataset, checkpoint=True)

  def opened():
    return contextlib.closing(checkpoints.Checkpointer(tmp_path, 1, {}))

  read = rows()
  assert next(read)['row'] == b'one'
  with opened() as checkpointer:
    checkpointer.save(1, state, read)
    checkpointer.wait()
  resumed = rows()
  with opened() as checkpointer:
    checkpointer.restore(1, state, resumed)
    assert next(resumed)['row'] == b'two'
    file.rename(tmp_path / 'elsewhere')
    with refusals.refused(file):
      checkpointer.restore(1, state, rows())


def test_rows_that_are_read_in_other_steps_are_named(tmp_path):
  rows = tf.data.Dataset.range(8).map(lambda x: {'x': x})
  before, now = (
      dataset_iterator.TfDatasetIterator(x, checkpoint=True)
      for x in (rows.shuffle(4), rows.batch(2))
  )
  state, folder = {'x': jnp.zeros(3)}, tmp_path / 'checkpoints'
  with contextlib.closing(checkpoints.Checkpointer(tmp_path, 1, {})) as opened:
    opened.save(1, state, before)
    opened.wait()
    with refusals.refused('PACKING', folder / '1'):
      opened.restore(1, state, now)


def test_another_optimizer_is_no_damage(tmp_path):
  params = {'x': jnp.zeros(3)}
  data = dataset_iterator.TfDatasetIterator(
      tf.data.Dataset.from_tensors({'row': 1}), checkpoint=True
  )
  with contextlib.closing(checkpoints.Checkpointer(tmp_path, 1, {})) as opened:
    opened.save(1, {'opt_state': optax.adamw(0.1).init(params)}, data)
    opened.wait()
    for optimizer in (optax.adam(0.1), optax.sgd(0.1), optax.adafactor(0.1)):
      with refusals.refused('experiment.Experiment.optimizer', tmp_path):
        opened.restore(1, {'opt_state': optimizer.init(params)})


def test_what_a_kill_left_half_written_goes_with_the_next_save(tmp_path):
  """Not while others look: the one that saves may be alive."""
  half = tmp_path / 'checkpoints' / '3.orbax-checkpoint-tmp'
  half.mkdir(parents=True)
  data = dataset_iterator.TfDatasetIterator(
      tf.data.Dataset.from_tensors({'row': 1}), checkpoint=True
  )
  for alone in (False, True):
    with contextlib.closing(
        checkpoints.Checkpointer(tmp_path, 1, {}, alone)
    ) as checkpointer:
      checkpointer.save(1 + alone, {'x': jnp.zeros(3)}, data)
      checkpointer.wait()
    assert half.exists() != alone


def test_damage_is_named_where_nothing_was_hashed(tmp_path):
  """Checkpoints of older versions have no checksums."""
  data = dataset_iterator.TfDatasetIterator(
      tf.data.Dataset.from_tensors({'row': 1}), checkpoint=True
  )
  opened = lambda: contextlib.closing(checkpoints.Checkpointer(tmp_path, 1, {}))
  with opened() as checkpointer:
    checkpointer.save(1, {'x': jnp.zeros(3)}, data)
    checkpointer.wait()
  folder = tmp_path / 'checkpoints' / '1'
  shutil.rmtree(folder / checksums.ITEM)
  for text in ('[1]', '{"data": 3}'):
    (folder / 'notes' / 'metadata').write_text(text)
    with opened() as checkpointer, refusals.refused(folder / 'notes'):
      checkpointer.restore_notes(1)
  for text in ('{"a', '7'):
    (folder / 'identity' / 'metadata').write_text(text)
    with refusals.refused(folder / 'identity'):
      opened()
  shutil.rmtree(folder / 'identity')
  with refusals.refused(folder / 'identity'):
    opened()
  (folder.parent / '2').mkdir()  # Nothing but a name.
  with refusals.refused(folder / 'identity'):
    opened()


@contextlib.contextmanager
def full_disk():
  """Files may not grow past 4 kB: writes fail as they do on a full disk."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize('t5x', [False, True])
def test_a_full_disk_leaves_no_part_of_a_base(t5x, tmp_path):
  params = {'a/kernel': np.random.default_rng(0).normal(size=(99, 99))}
  with refusals.refused(tmp_path / 'base', 'File too large'):
    with full_disk(), atomic.new_folder(tmp_path / 'base', '--out') as folder:
      bases.save_base(params, folder, t5x)
  assert not list(tmp_path.iterdir())


def test_a_save_that_fails_while_the_run_ends_is_named(tmp_path):
  """Something else, as a log, was refused first."""
  checkpointer = checkpoints.Checkpointer(tmp_path, 1, {})
  data = dataset_iterator.TfDatasetIterator(
      tf.data.Dataset.from_tensor_slices({'x': [1, 2]}), checkpoint=True
  )
  with full_disk():
    checkpointer.save(1, {'a': np.random.default_rng(0).normal(size=999)}, data)
    with refusals.refused(tmp_path / 'checkpoints', 'cannot be saved'):
      checkpointer.close()


@pytest.mark.slow
def test_a_full_disk_loses_nothing_that_was_saved(tmp_path):
  experiment = tiny.experiment(tmp_path, TRAIN_STEPS=2)
  setup = experiment_lib.prepare(experiment)
  with contextlib.closing(loop.open_checkpoints(setup)) as checkpointer:
    loop.train(setup, checkpointer, lambda *_: None)

  longer = tiny.experiment(tmp_path, TRAIN_STEPS=4)
  setup = experiment_lib.prepare(longer)
  with contextlib.closing(loop.open_checkpoints(setup)) as checkpointer:
    with full_disk(), pytest.raises(errors.UserError, match='cannot be saved'):
      loop.train(setup, checkpointer, lambda *_: None)

  setup = experiment_lib.prepare(longer)
  with contextlib.closing(loop.open_checkpoints(setup)) as checkpointer:
    assert checkpointer.latest_step() == 2
    state = loop.train(setup, checkpointer, lambda *_: None)
  assert int(state.step) == 4
