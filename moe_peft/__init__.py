# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Mixture-of-experts parameter-efficient fine-tuning in JAX and Flax."""

__all__ = ('adapt',)


def __getattr__(name):
  # JAX is not imported before commands have said which devices it may take.
  if name == 'adapt':
    from moe_peft.core import own_loop

    return own_loop.adapt
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
