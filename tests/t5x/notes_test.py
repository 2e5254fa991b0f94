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
