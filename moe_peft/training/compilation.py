# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Compiled programs, kept between runs."""

import os
from pathlib import Path

import jax


def use_cache(folder: str | None = None) -> None:
  """Keeps compiled programs between runs.

  Args:
    folder: Where, on a disk or in a bucket; by default where JAX is told,
      or else in the user's cache.
  """
  if folder is None and jax.config.jax_compilation_cache_dir is not None:
    return
  cache = os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')
  jax.config.update(
      'jax_compilation_cache_dir',
      os.path.expanduser(folder or Path(cache) / 'moe_peft' / 'jax'),
  )
