# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of bases that are read and of what fails while saving."""

import contextlib
import resource

from clu.data import dataset_iterator
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorflow as tf

from moe_peft import errors
from moe_peft.training import checkpoints
from moe_peft.training import experiment as experiment_lib
from moe_peft.training import loop
from tests.training import tiny

BASE = {
    'encoder/kernel': np.arange(6, dtype=np.float32).reshape(2, 3) / 8,
    'encoder/scale': np.ones(3, np.float32),
}


def test_a_base_round_trips_in_bfloat16(tmp_path):
  checkpoints.save_base(BASE, tmp_path)
  read = checkpoints.load_base(str(tmp_path), BASE)
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
  read = checkpoints.load_base(str(tmp_path / 'base'), BASE)
  for name, value in BASE.items():
    np.testing.assert_array_equal(read[name], value)


def test_the_small_base_ships_and_fits_its_model(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  plain = tiny.experiment(
      tmp_path, 'lora', INITIAL_CHECKPOINT_PATH='bases/tiny_t5',
      **tiny.FULL_SIZES,
  )
  setup = experiment_lib.prepare(plain)
  assert setup.base['parameters'] == 1_575_296
  stored = checkpoints.load_base('bases/tiny_t5', setup.frozen)
  for name, value in setup.frozen.items():
    np.testing.assert_array_equal(value, stored[name].astype(np.float32))


def test_other_files_are_refused_by_name(tmp_path):
  with pytest.raises(errors.UserError, match='does not exist'):
    checkpoints.load_base(str(tmp_path / 'none'), BASE)
  with pytest.raises(errors.UserError, match='holds no base'):
    checkpoints.load_base(str(tmp_path), BASE)
  file = checkpoints.save_base(BASE, tmp_path)
  file.write_bytes(file.read_bytes()[:-8])
  with pytest.raises(errors.UserError, match='truncated'):
    checkpoints.load_base(str(tmp_path), BASE)


def test_another_model_is_refused_with_what_differs(tmp_path):
  checkpoints.save_base(BASE, tmp_path)
  expected = {
      'encoder/kernel': jnp.zeros((3, 3)), 'decoder/scale': jnp.zeros(3)
  }
  with pytest.raises(errors.UserError) as error:
    checkpoints.load_base(str(tmp_path), expected)
  for words in (
      'missing: decoder/scale',
      'not in the model: encoder/scale',
      'encoder/kernel is (2, 3) there and (3, 3) in the model',
  ):
    assert words in str(error.value)


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
    with pytest.raises(errors.UserError, match='rows.tfrecord is not there'):
      checkpointer.restore(1, state, rows())


@pytest.mark.slow
def test_a_full_disk_loses_nothing_that_was_saved(tmp_path):
  experiment = tiny.experiment(tmp_path, TRAIN_STEPS=2)
  setup = experiment_lib.prepare(experiment)
  with contextlib.closing(loop.open_checkpoints(setup)) as checkpointer:
    loop.train(setup, checkpointer, lambda *_: None)

  longer = tiny.experiment(tmp_path, TRAIN_STEPS=4)
  setup = experiment_lib.prepare(longer)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  with contextlib.closing(loop.open_checkpoints(setup)) as checkpointer:
    # Files may not grow past 4 kB: writes fail as they do on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
      with pytest.raises(errors.UserError, match='could not be saved'):
        loop.train(setup, checkpointer, lambda *_: None)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

  setup = experiment_lib.prepare(longer)
  with contextlib.closing(loop.open_checkpoints(setup)) as checkpointer:
    assert checkpointer.latest_step() == 2
    state = loop.train(setup, checkpointer, lambda *_: None)
  assert int(state.step) == 4
