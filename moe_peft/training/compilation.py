# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Compiled programs, kept between runs."""

import os
from pathlib import Path

import jax


def use_cache() -> None:
  """Keeps compiled programs between runs, unless JAX is told where."""
  if jax.config.jax_compilation_cache_dir is not None:
    return
  cache = os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')
  jax.config.update(
      'jax_compilation_cache_dir', str(Path(cache) / 'moe_peft' / 'jax')
  )
