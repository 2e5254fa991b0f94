# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Optimizer transformations that see all arrays of an adapter together.

Optax gives a transformation every array alone; here it gets those of one
adapter by name. `trainable.by_path` takes one before its optimizers, for
gradients, and one behind them, for updates. They keep no state, so checkpoints
of runs without them stay as they are.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from moe_peft import errors
from moe_peft.core import sites
from moe_peft.core import trainable

Arrays = Mapping[str, jax.Array]
# (gradients or updates, parameters) of one adapter by name, such as
# `lora_a` and `router/kernel`, to new gradients or updates.
Change = Callable[[Arrays, Arrays], Arrays]


def of_each_adapter(change: Change) -> optax.GradientTransformation:
  """A transformation that sees one adapter at a time.

  Args:
    change: Called once for every adapter. Arrays of a scanned stack have its
      layers on axis 1. What it leaves out stays as it is.

  Returns:
    A transformation of flat or nested parameters, without a state.
  """

  def update(updates, state, params=None):
    if params is None:
      raise ValueError(optax.base.NO_PARAMS_MSG)
    leaves, tree = jax.tree_util.tree_flatten_with_path(updates)
    paths = [trainable.path_of(keys) for keys, _ in leaves]
    values = [leaf for _, leaf in leaves]
    found: dict[str, dict[str, int]] = {}
    for index, path in enumerate(paths):
      site, within, name = path.partition(f'/{sites.ADAPTER_SCOPE}/')
      if within:
        found.setdefault(site, {})[name] = index
    now = tree.flatten_up_to(params)
    for names in found.values():
      changed = change(
          {name: values[index] for name, index in names.items()},
          {name: now[index] for name, index in names.items()},
      )
      for name, value in changed.items():
        values[names[name]] = value
    return tree.unflatten(values), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def faster_b(ratio: float = 16.0) -> optax.GradientTransformation:
  """LoRA+ (arXiv 2402.12354): `lora_b` has a multiple of the rate.

  For updates: what AdamW adds is proportional to its rate, weight decay
  included.

  Args:
    ratio: Rate of `lora_b` over the others'.
  """

  def change(updates: Arrays, params: Arrays) -> dict[str, Any]:
    del params
    return {
        name: ratio * x for name, x in updates.items()
        if name.endswith('lora_b')
    }

  return of_each_adapter(change)


def riemannian(damping: float = 1e-6) -> optax.GradientTransformation:
  """Gradients divided by the other factor's Gram matrix, for gradients.

    d lora_a <- d lora_a (lora_b lora_b^T + c I)^-1
    d lora_b <- (lora_a^T lora_a + c I)^-1 d lora_b

  of every expert (arXiv 2402.02347, 2502.15828). Ours: c is `damping` times the
  mean of the diagonal, since a constant would be far too small for a `lora_b`
  that has just left zero, and both factors are those before the step; the
  released code takes the `lora_a` after it.

  Args:
    damping: As above.

  Raises:
    errors.UserError: At the first step, if experts share a factor.
  """

  def change(updates: Arrays, params: Arrays) -> dict[str, Any]:
    if not {'lora_a', 'lora_b'} <= updates.keys():
      return {}
    a, b = params['lora_a'], params['lora_b']
    if len(a) != len(b):
      raise errors.UserError(
          'Riemannian gradients are those of pairs; these experts share one '
          'factor.', 'trainable.by_path.gradients',
          'Use a method whose experts have both factors.',
      )
    gram_a = jnp.einsum('...ir,...is->...rs', a, a)
    gram_b = jnp.einsum('...ro,...so->...rs', b, b)
    return {
        'lora_a': _solve(gram_b, updates['lora_a'].mT, damping).mT,
        'lora_b': _solve(gram_a, updates['lora_b'], damping),
    }

  return of_each_adapter(change)


def _solve(gram: jax.Array, right: jax.Array, damping: float) -> jax.Array:
  """Returns `(gram + c I)^-1 right`; 0 where the right side is 0."""
  size = gram.shape[-1]
  mean = jnp.trace(gram, axis1=-2, axis2=-1)[..., None, None] / size
  # Where `lora_b` is zero, so is the gradient on the right: any c will do.
  shift = jnp.where(mean > 0, damping * mean, 1.0) * jnp.eye(size)
  return jnp.linalg.solve(gram + shift, right)
