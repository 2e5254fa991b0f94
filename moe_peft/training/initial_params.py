# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Parameters that a base lacks: initialized, or made from its kernels."""

import collections
from collections.abc import Callable, Mapping
from typing import Any

import jax

from moe_peft.core import adapted_sites
from moe_peft.core import initial_values
from moe_peft.core import trainable

Params = Mapping[str, Any]


def complete(
    base: Params,
    init: Callable[[jax.Array], Params],
    rng: jax.Array,
    shardings: Mapping[str, jax.sharding.Sharding],
) -> Params:
  """A base and all that it lacks.

  Args:
    base: What is read, by path; an array is read when it is looked up.
    init: Makes all variables of a fresh model.
    rng: Key of the initial values.
    shardings: How each parameter lies that the base does not hold, by path.

  Returns:
    Parameters by path.

  Raises:
    errors.UserError: If adapters begin with parts of kernels that are missing.
  """

  def init_missing(rng):
    params = trainable.flatten(init(rng)['params'])
    return {name: params[name] for name in shardings}

  # What the base holds is not initialized; XLA drops it.
  fresh = jax.jit(init_missing, out_shardings=dict(shardings))(rng)
  params = collections.ChainMap({}, fresh, base)
  if initial_values.wanted(shardings):
    _, adapters = adapted_sites.trace(lambda: init(jax.random.key(0)))
    params.update(initial_values.from_base(adapters, params))
  return params
