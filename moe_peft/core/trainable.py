# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which parameters are trained: the one partition that everything asks.

Parameters are handled as flat dictionaries, `{'encoder/.../kernel': array}`.
"""

from collections.abc import Mapping, Sequence
import re
from typing import Any

from flax import traverse_util
import jax
import numpy as np
import optax

from moe_peft import errors

Params = Mapping[str, Any]

ADAPTER_REGEX = r'.*/adapter/.*'


def is_adapter(path: str, _: Any = None) -> bool:
  """True for a parameter of an adapter, e.g. `.../query/adapter/lora_a`.

  The second argument is ignored; with it the function serves as a filter of
  `flax.traverse_util.ModelParamTraversal`, which T5X uses.
  """
  return re.fullmatch(ADAPTER_REGEX, path) is not None


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the nested parameters as `{path: leaf}`."""
  return traverse_util.flatten_dict(params, sep='/')


def unflatten(params: Params) -> dict[str, Any]:
  """Inverse of `flatten`."""
  return traverse_util.unflatten_dict(dict(params), sep='/')


def is_scanned(path: str) -> bool:
  """True for a path in a scanned stack, `encoder/encoder/mlp/wo/kernel`.

  T5X's networks and ours name the one layer of a scan after its stack.
  """
  first, _, rest = path.partition('/')
  return rest.partition('/')[0] == first


def by_layer(path: str, array: Any, axis: int) -> dict[str, Any]:
  """Takes the layers of a scanned stack apart.

  Args:
    path: Of a parameter, a layer or anything else in a model.
    array: What lies there.
    axis: On which the scan has stacked its layers.

  Returns:
    The array of each layer, by the path without a scan, as in
    `encoder/layers_0/mlp/wo/kernel`. Outside of a scan nothing is done.
  """
  if not is_scanned(path):
    return {path: array}
  stack, _, rest = path.split('/', maxsplit=2)
  before = (slice(None),) * axis
  return {
      f'{stack}/layers_{index}/{rest}': array[(*before, index)]
      for index in range(array.shape[axis])
  }


def split(
    params: Params, trainable_regex: str = ADAPTER_REGEX
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Splits flat parameters into (trainable, frozen).

  Args:
    params: Flat parameters.
    trainable_regex: A parameter is trained where the whole path matches.

  Raises:
    errors.UserError: If nothing would be trained.
  """
  trains = re.compile(trainable_regex).fullmatch
  trainable = {k: v for k, v in params.items() if trains(k)}
  frozen = {k: v for k, v in params.items() if not trains(k)}
  if not trainable:
    raise errors.UserError(
        f'TRAINABLE_REGEX = {trainable_regex!r} matches no parameter, so '
        'nothing would be trained. Include a method, for example '
        "gin/methods/molora.gin, or train everything with '.*'. A parameter "
        f'of this model: {next(iter(params), "none")}'
    )
  return trainable, frozen


def num_params(params: Params) -> int:
  """Number of scalars in flat parameters (arrays or their shapes)."""
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(dict(params)))


def by_path(
    rules: Sequence[tuple[str, optax.GradientTransformation]],
) -> optax.GradientTransformation:
  """An optimizer for each group of parameters, chosen by path.

  Args:
    rules: Pairs (regular expression, optimizer). The first expression that
      matches a whole path decides.

  Returns:
    The optimizer of flat trainable parameters.

  Raises:
    errors.UserError: At `init`, if a parameter matches no rule.
  """
  transforms = {regex: optimizer for regex, optimizer in rules}

  def label(path: str) -> str:
    for regex in transforms:
      if re.fullmatch(regex, path):
        return regex
    raise errors.UserError(
        f'No rule of trainable.by_path.rules matches the parameter {path}. '
        "Add a last rule ('.*', ...)."
    )

  return optax.multi_transform(
      transforms, lambda params: {path: label(path) for path in params}
  )


def describe(params: Params, trainable_regex: str = ADAPTER_REGEX) -> str:
  """One line: how many parameters train, of how many."""
  trainable, _ = split(params, trainable_regex)
  trained, total = num_params(trainable), num_params(params)
  base = num_params({k: v for k, v in params.items() if not is_adapter(k)})
  return (
      f'{trained:,} of {total:,} parameters train '
      f'({100 * trained / max(base, 1):.2f} % of the base)'
  )
