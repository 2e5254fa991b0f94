# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Where compiled programs are kept."""

import jax
import pytest

from moe_peft.training import compilation


@pytest.mark.parametrize(
    ('told', 'folder', 'kept'),
    [
        (None, None, '{cache}/moe_peft/jax'),
        ('/elsewhere', None, '/elsewhere'),
        ('/elsewhere', 'gs://programs', 'gs://programs'),
    ],
)
def test_programs_are_kept_where_the_run_or_jax_is_told(
    told, folder, kept, tmp_path, monkeypatch
):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  before = jax.config.jax_compilation_cache_dir
  try:
    jax.config.update('jax_compilation_cache_dir', told)
    compilation.use_cache(folder)
    found = jax.config.jax_compilation_cache_dir
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
  assert found == kept.format(cache=tmp_path)
