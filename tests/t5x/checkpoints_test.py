# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which base a checkpoint of adapters names, in both versions of its file."""

import pytest

from tests import refusals

pytest.importorskip('t5x')
checkpoints = pytest.importorskip('moe_peft.t5x.checkpoints')
whole_checkpoints = pytest.importorskip('moe_peft.t5x.whole_checkpoints')
pytestmark = pytest.mark.t5x

FOUND = {'parameters': 100, 'sha256': 'abc', 'version': 2}


@pytest.mark.parametrize(
    ('saved', 'same'),
    [
        ({'parameters': 100, 'sha256': 'abc', 'version': 2}, True),
        ({'parameters': 100, 'sha256': 'abd', 'version': 2}, False),
        # The digest of the first version was of other bytes.
        ({'parameters': 100, 'sha256': 'other'}, True),
        ({'parameters': 101, 'sha256': 'abc'}, False),
    ],
)
def test_the_base_is_told_by_its_values(saved, same):
  assert whole_checkpoints.is_of(saved, FOUND) is same


def test_what_is_saved_is_not_transformed():
  checkpointer = checkpoints.AdapterCheckpointer(None, None, '')
  with refusals.refused('utils.SaveCheckpointConfig.state_transformation_fns'):
    checkpointer.save(None, [lambda state, _: state])
