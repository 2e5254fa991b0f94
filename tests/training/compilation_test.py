# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Where compiled programs are kept."""

import jax
import pytest

from moe_peft.training import compilation


@pytest.mark.parametrize('told', [None, '/elsewhere'])
def test_programs_are_kept_unless_jax_is_told_where(
    told, tmp_path, monkeypatch
):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  before = jax.config.jax_compilation_cache_dir
  try:
    jax.config.update('jax_compilation_cache_dir', told)
    compilation.use_cache()
    found = jax.config.jax_compilation_cache_dir
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
  assert found == (told or str(tmp_path / 'moe_peft' / 'jax'))
