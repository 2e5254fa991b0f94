# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Bases that the tests of T5X share."""

import pytest

from tests.t5x import networks
from tests.t5x import training


@pytest.fixture(scope='session')
def bases(tmp_path_factory):
  """Makes T5X checkpoints of unchanged networks: path and parameters."""
  made = {}

  def get(name):
    name = networks.NETWORKS[name].base or name
    package = networks.NETWORKS[name].package
    pytest.importorskip(package)
    if name not in made:
      folder = tmp_path_factory.mktemp(name)
      state = training.train(networks.stock(name), folder, package=package)
      made[name] = str(folder / 'checkpoint_1'), training.flat_params(state)
    return made[name]

  return get
