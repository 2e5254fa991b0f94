# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The record and the table of the checks of all methods."""

import json

from moe_peft import errors
from moe_peft.cli import check
from tests.checks import sweep

CHECKS = [
    {'name': 'identity', 'status': 'passed', 'detail': ''},
    {'name': 'sharding', 'status': 'failed', 'detail': 'They differ.'},
]


def test_a_sweep_records_each_method_and_goes_on(tmp_path, monkeypatch):
  asked = []

  def main(argv):
    asked.append(argv[argv.index('--json') + 1:][1])
    if len(asked) == 2:
      raise errors.UserError('It is too large.', 'RANK')
    print(json.dumps({'sizes': '', 'checks': CHECKS, 'failed': 1}))

  monkeypatch.setattr(check, 'main', main)
  out = ['--out', str(tmp_path)]
  goat, mov = ['--method', 'goat'], ['--method', 'mov']
  assert sweep.main(goat + out) == 1
  assert sweep.main(goat + mov + out) == 1
  assert asked == [f'--gin_file=gin/methods/{x}.gin' for x in ('goat', 'mov')]
  table = (tmp_path / 'checks.md').read_text('utf-8')
  assert '| goat | passed | failed |' in table
  assert '| mov |  |  |' in table
  assert '| mov | all | ' in table and 'It is too large.' in table
  assert '| goat | sharding | They differ. |' in table


def test_what_is_said_of_methods_names_methods_that_exist():
  assert {*sweep._SITES_OF, *sweep._GIVEN} <= set(sweep.methods())
  assert '--gin.TRAIN_STEPS=0' in sweep.arguments('bank_arrow')
