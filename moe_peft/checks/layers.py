# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Check of a scan over layers against layers one after another."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from moe_peft.checks import outcome
from moe_peft.checks import subject as subject_lib
from moe_peft.core import trainable

_FIRST, _NUMBER = 'layers_0', 'layer_index'
# Networks of ours and of T5X stack the parameters of a scan on this axis.
_SCAN_AXIS = 1


def scan(subject: subject_lib.Subject) -> None:
  """A scan over layers computes what the layers compute one by one."""
  network = subject.module.module
  config = getattr(network, 'config', None)
  if not hasattr(config, 'scan_layers'):
    raise outcome.Skipped('the network has no field config.scan_layers')
  other = subject.module.clone(module=network.clone(
      config=config.replace(scan_layers=not config.scan_layers)
  ))
  if config.scan_layers:
    compare(subject, other, subject.module)
  else:
    compare(subject, subject.module, other)


def compare(subject: subject_lib.Subject, unrolled: Any, scanned: Any) -> None:
  """Raises outcome.Failure unless two adapted networks compute the same.

  Args:
    subject: What is checked, for its batch and its calls.
    unrolled: The adapted network with layers one after another.
    scanned: The same network with a scan.
  """
  if unrolled is subject.module:
    params = subject.moved
  else:
    fresh = subject.fresh(unrolled)['params']
    params = subject_lib.moved(trainable.flatten(fresh), subject.noise)
  stacked = stack(params, subject.shapes(scanned))

  def run(module, params):
    same = module is subject.module
    program = subject.evaluate if same else subject.compiled(module, False)
    return program(params, subject.batch)

  want, sown = run(unrolled, params)
  got, metrics = run(scanned, stacked)
  outcome.close(got, want, 'Outputs with and without a scan')
  numbers = {
      number
      for site in subject.sites.values()
      for number in site.adapter.experts_by_depth or (site.adapter.num_experts,)
  }
  if 1 not in numbers or not any(path.endswith(_NUMBER) for path in stacked):
    # Else some layers have no router, and one with nothing to choose in a scan.
    outcome.close_trees(metrics, sown, 'What adapters sow with a scan', 1e-4)


def stack(
    params: Mapping[str, Any], shapes: Mapping[str, Any]
) -> dict[str, Any]:
  """Parameters of a scan from those of layers one after another.

  Arrays of layers with fewer experts are padded with zeros; what the layers
  share is repeated.

  Args:
    params: Flat parameters with paths as `encoder/layers_0/mlp/wo/kernel`.
    shapes: Shapes of the flat parameters of the scan.
  """
  return {
      path: _stacked(path, shape.shape, params)
      for path, shape in shapes.items()
  }


def _stacked(path, shape, params):
  if path.endswith(_NUMBER):
    return jnp.arange(shape[_SCAN_AXIS], dtype=jnp.float32).reshape(shape)
  parts = path.split('/')
  for place in range(len(parts)):
    inside = '/'.join([*parts[:place], _FIRST, *parts[place + 1:]])
    if inside in params:
      names = [
          inside.replace(_FIRST, f'layers_{number}')
          for number in range(shape[_SCAN_AXIS])
      ]
      return _joined([params[name] for name in names], shape)
    shared = '/'.join([*parts[:place], *parts[place + 1:]])
    if path not in params and shared in params:
      return _joined([params[shared]] * shape[_SCAN_AXIS], shape)
  return params[path]


def _joined(arrays, shape):
  """Arrays side by side on the scan's axis, of the scan's shape."""
  one = (*shape[:_SCAN_AXIS], *shape[_SCAN_AXIS + 1:])
  whole = []
  for x in arrays:
    if x.ndim == len(one):
      x = jnp.pad(x, [(0, n - m) for n, m in zip(one, x.shape, strict=True)])
    whole.append(x.reshape(one))
  return jnp.stack(whole, _SCAN_AXIS)
