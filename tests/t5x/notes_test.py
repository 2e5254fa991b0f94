# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Notes of checkpoints: what a run may go on with."""

import gin
import pytest

from moe_peft.t5x import notes
from tests import refusals
from tests.training import tiny

PATH = '/runs/mine/checkpoint_6'


@pytest.fixture(name='now')
def _now(tmp_path):
  tiny.experiment(tmp_path, 'molora')
  return notes.Notes(None, False, False).now()


def test_another_method_is_refused_or_told(now, caplog):
  with gin.unlock_config():
    gin.bind_parameter('ALPHA/gin.macro.value', 3.0)
  strict, free = (notes.Notes(None, False, x) for x in (False, True))
  with refusals.refused('ALPHA', 'step 6', 3.0, 'ALLOW_CHANGED_METHOD'):
    strict.check(PATH, now, resumes=True)
  free.check(PATH, now, resumes=True)
  assert not caplog.text
  strict.check(PATH, now, resumes=False)
  assert 'ALPHA was' in caplog.text


def test_ids_in_another_order_are_another_method(tmp_path):
  tiny.load(tmp_path, 'molora_id', EXAMPLE_IDS=('past_tense', 'plural'))
  noted = notes.Notes(None, False, False)
  then = noted.now()
  tiny.load(tmp_path, 'molora_id', EXAMPLE_IDS=('plural', 'past_tense'))
  with refusals.refused('EXAMPLE_IDS', 'step 6', 'ALLOW_CHANGED_METHOD'):
    noted.check(PATH, then, resumes=True)
  del then['method']['EXAMPLE_IDS']  # An older version.
  noted.check(PATH, then, resumes=True)


def test_whole_checkpoints_have_the_method_in_the_file_of_their_run(
    now, tmp_path, caplog
):
  path = tmp_path / 'run' / 'checkpoint_6'
  path.mkdir(parents=True)
  notes.check_whole(path, resumes=True)  # It is not known.
  assert 'first rows again' in caplog.text
  (path / 'dataset').mkdir()
  caplog.clear()
  config = path.parent / 'config.gin'
  config.write_text(gin.config_str())
  notes.check_whole(path, resumes=True)
  with gin.unlock_config():
    gin.bind_parameter('ALPHA/gin.macro.value', 3.0)
  with refusals.refused('MODEL_DIR', 'ALPHA', 3.0, 'ALLOW_CHANGED_METHOD'):
    notes.check_whole(path, resumes=True)
  assert not caplog.text
  notes.check_whole(path, resumes=False)
  assert 'ALPHA was' in caplog.text
  config.write_text(config.read_text()[:-30] + '((')  # T5X was killed.
  notes.check_whole(path, resumes=True)


def test_other_files_with_the_same_adapters_are_not_told_of(now, caplog):
  # As t5x_config writes the losses; they change no answer either.
  method = {**now['method'], 'LOSS_FACTORS': "{'auxiliary_loss': 0.5}"}
  del method['AUX_LOSS_FACTOR']
  notes.Notes(None, False, False).check(PATH, {'method': method}, resumes=False)
  assert not caplog.text


def test_the_same_method_and_an_older_version_are_not(now, caplog):
  for then in (now, {}):
    notes.Notes(None, False, False).check(PATH, then, resumes=True)
    notes.Notes(None, False, False).check(PATH, then, resumes=False)
  assert not caplog.text
