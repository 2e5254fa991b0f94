# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What devices and disks refuse is an error for users; nothing else is."""

import errno

import jax
import pytest

from moe_peft.cli import machine_errors


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_names_the_file(number):
  error = machine_errors.explain(OSError(number, 'No room', 'runs/a'))
  assert error.where == 'runs/a'
  assert error.remedy


def test_a_file_that_is_closed_to_the_user_is_named():
  error = machine_errors.explain(PermissionError(errno.EACCES, 'No', 'runs/a'))
  assert (error.what, error.where, error.remedy) == ('No.', 'runs/a', '')


def test_a_full_device_names_what_takes_less_memory():
  error = machine_errors.explain(
      jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 9 GiB.\nAll buffers')
  )
  assert '9 GiB.' in str(error)
  assert 'buffers' not in str(error)
  assert 'NUM_MICROBATCHES' in error.remedy


@pytest.mark.parametrize('error', [
    OSError(errno.ENOENT, 'No such file', 'a'),
    jax.errors.JaxRuntimeError('INVALID_ARGUMENT: shapes'),
    ValueError('RESOURCE_EXHAUSTED: a text'),
])
def test_other_errors_are_not_explained(error):
  assert machine_errors.explain(error) is None
