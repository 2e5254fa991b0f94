# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Initial values that depend on the kernel of the layer (SVD initializers).

Flax initializes adapters before the base is read. An adapter with a method
`from_kernel(kernel)` gets its values here, once the base is there: kernels of
a layer alone, <float32>[in, out], whatever the axes in the model, also where a
scan has stacked them.
"""

from collections.abc import Iterable, Mapping
import functools
from typing import Any

import numpy as np

from moe_peft import errors
from moe_peft.core import adapted_sites
from moe_peft.core import sites

_SCAN_AXIS = 1


def wanted(paths: Iterable[str]) -> bool:
  """Whether parameters of these paths are made from kernels."""
  names = tuple(f'/{sites.ADAPTER_SCOPE}/frozen_{half}' for half in 'ab')
  return any(path.endswith(names) for path in paths)


def from_base(
    adapters: Mapping[str, adapted_sites.TracedSite], params: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """The parameters of adapters that their kernels decide.

  Args:
    adapters: The adapters of the model, by the path of their layer.
    params: Its flat parameters, base included.

  Returns:
    New values by path, for adapters with a `from_kernel`.

  Raises:
    errors.UserError: If such a layer has no kernel.
  """
  found = {}
  for layer, site in adapters.items():
    make = getattr(site.adapter, 'from_kernel', None)
    if make is None:
      continue
    kernel, scope = f'{layer}/kernel', f'{layer}/{sites.ADAPTER_SCOPE}/'
    if kernel not in params:
      raise errors.UserError(
          f'{type(site.adapter).__name__} begins with parts of the kernel of '
          f'{layer}, which has no parameter of that name.', where='SITES',
          remedy='Take a base with whole kernels, or another method.',
      )
    kernels = np.asarray(params[kernel], np.float32)
    *stacked, features, _ = params[f'{scope}lora_a'].shape[1:]
    matrix = functools.partial(_matrix, path=kernel, features=features)
    if not stacked:
      values = make(matrix(kernels))
    else:
      layers = np.moveaxis(kernels, _SCAN_AXIS, 0)
      made = [make(matrix(one)) for one in layers]
      values = {
          name: np.stack([x[name] for x in made], _SCAN_AXIS)
          for name in made[0]
      }
    found |= {scope + name: value for name, value in values.items()}
  return found


def _matrix(kernel: np.ndarray, path: str, features: int) -> np.ndarray:
  """The kernel of a layer as <float>[in, out]; its inputs must come first."""
  if features not in np.cumprod(kernel.shape):
    raise errors.UserError(
        f'The first axes of {path} {list(kernel.shape)} are not its '
        f'{features} inputs.', where='SITES',
        remedy='Leave such layers out, or take another method.',
    )
  return kernel.reshape(features, -1)
