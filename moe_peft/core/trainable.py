# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which parameters are trained: the one partition that everything asks.

Parameters are handled as flat dictionaries, `{'encoder/.../kernel': array}`.
"""

from collections.abc import Callable, Mapping, Sequence
import math
import re
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import optax

from moe_peft import errors

Params = Mapping[str, Any]

ADAPTER_REGEX = r'.*/adapter/.*'
CONSTANT_REGEX = r'.*/adapter/(layer_index|frozen_[ab])'
# What begins at zero and does nothing until it is trained or read.
UPDATE_REGEX = r'.*/adapter/lora_b'
# What a bank tells its router of each expert. An expert of which it is zero
# counts as absent, so it cannot train from there.
COLUMN_REGEX = r'.*/adapter/router/(gates|centroids)'


def matcher(regex: str) -> Callable[[str], bool]:
  """Says of a path whether the expression matches all of it.

  The parameters of a network that is itself one adapted layer are
  `adapter/lora_a` and so on; `.*/adapter/.*` means them too.
  """
  pattern = re.compile(regex)

  def matches(path: str) -> bool:
    whole = f'/{path}' if path.startswith('adapter/') else path
    return pattern.fullmatch(whole) is not None

  return matches


def is_adapter(path: str) -> bool:
  """True for a parameter of an adapter, e.g. `.../query/adapter/lora_a`."""
  return matcher(ADAPTER_REGEX)(path)


def is_constant(path: str) -> bool:
  """True for what an adapter stores and no optimizer may change.

  In a scan that is `adapter/layer_index`, the number of the layer; of methods
  that begin with a part of the kernel, that part.
  """
  return matcher(CONSTANT_REGEX)(path)


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
    path: Path of a parameter, a layer or anything else in a model.
    array: The array at that path.
    axis: The axis on which the scan has stacked its layers.

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
    params: Params, trainable_regex: str = ADAPTER_REGEX,
    required: bool = True,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Splits flat parameters into (trainable, frozen).

  Args:
    params: Flat parameters.
    trainable_regex: A parameter is trained where the whole path matches.
    required: Whether one must.

  Raises:
    errors.UserError: If nothing would be trained.
  """
  trains = matcher(trainable_regex)
  trainable = {k: v for k, v in params.items() if trains(k)}
  frozen = {k: v for k, v in params.items() if not trains(k)}
  if required and not trainable:
    raise errors.UserError(
        f'{trainable_regex!r} matches no parameter of the model, so nothing '
        f'would be trained; one of them is {next(iter(params), "none")}.',
        where='TRAINABLE_REGEX',
        remedy='Include a method, for example gin/methods/molora.gin, or train '
        "everything with '.*'; what trains nothing, as Arrow, is scored with "
        'TRAIN_STEPS = 0.',
    )
  return trainable, frozen


def num_trained(params: Params) -> int:
  """`num_params` of what an optimizer may change."""
  return num_params({k: x for k, x in params.items() if not is_constant(k)})


def num_params(params: Params) -> int:
  """Number of scalars in flat parameters (arrays or their shapes)."""
  has_shape = lambda x: hasattr(x, 'shape')  # Quantized kernels have one too.
  leaves = jax.tree.leaves(dict(params), is_leaf=has_shape)
  return sum(math.prod(x.shape) for x in leaves)


def path_of(keys: Sequence[Any]) -> str:
  """The path of a leaf, from its keys in a flat or in a nested tree."""
  return '/'.join(str(getattr(k, 'key', getattr(k, 'name', k))) for k in keys)


def first_match(
    rules: Sequence[tuple[str, Any]], path: str, where: str
) -> tuple[int, str]:
  """Index and regular expression of the rule that decides about a path.

  Args:
    rules: Pairs of a regular expression and anything else.
    path: Path of a parameter; the first expression that matches all of it
      decides.
    where: The binding that holds the rules, for the error.

  Raises:
    errors.UserError: If no rule matches.
  """
  for index, (regex, _) in enumerate(rules):
    if matcher(regex)(path):
      return index, regex
  raise errors.UserError(
      f'No rule matches the parameter {path}.',
      where=where,
      remedy="Add a last rule ('.*', ...).",
  )


def partition(
    optimizers: Mapping[str, optax.GradientTransformation],
    label: Callable[[str], str],
) -> optax.GradientTransformationExtraArgs:
  """`optax.partition` by path, in which constants stay what they are.

  Optimizers change parameters without a gradient too, by weight decay; a
  constant gets an update of zero. It keeps its place in the state of the
  optimizer, so that checkpoints do not depend on what is a constant.

  Args:
    optimizers: Optimizers by label; labels become keys of the saved state.
    label: The label of the parameter at a path.

  Returns:
    The optimizer of flat or nested parameters.
  """
  map_with_path = jax.tree_util.tree_map_with_path
  labels = lambda params: map_with_path(
      lambda keys, _: label(path_of(keys)), params
  )
  parts = optax.partition(optimizers, labels)

  def zero_if_constant(keys, x):
    return jnp.zeros_like(x) if is_constant(path_of(keys)) else x

  def update(grads, state, params=None, **extra_args):
    updates, state = parts.update(grads, state, params, **extra_args)
    return map_with_path(zero_if_constant, updates), state

  return optax.GradientTransformationExtraArgs(parts.init, update)


def by_path(
    rules: Sequence[tuple[str, optax.GradientTransformation]],
    gradients: optax.GradientTransformation | None = None,
    updates: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
  """An optimizer for each group of parameters, chosen by path.

  Args:
    rules: Pairs (regular expression, optimizer). The first expression that
      matches a whole path decides.
    gradients: A method's transformation of all gradients, before the
      optimizers; see `site_updates.py`.
    updates: The same of what the optimizers add, behind them.

  Returns:
    The optimizer of flat trainable parameters.

  Raises:
    errors.UserError: For what is no regular expression; at `init`, if a
      parameter matches no rule.
  """
  for regex, _ in rules:
    try:
      re.compile(regex)
    except (re.error, TypeError) as error:
      raise errors.UserError(
          f'{regex!r} is no regular expression ({error}).',
          where='trainable.by_path.rules',
      ) from error
  # The expressions are keys in checkpoints. Of two equal ones, the first
  # decides, so the first has to stay in the dictionary.
  parts = partition(
      dict(reversed(rules)),
      lambda path: first_match(rules, path, 'trainable.by_path.rules')[1],
  )
  return between(gradients, parts, updates)


def between(
    gradients: optax.GradientTransformation | None,
    optimizer: optax.GradientTransformation,
    updates: optax.GradientTransformation | None,
) -> optax.GradientTransformation:
  """An optimizer with transformations before and behind it, if there are any.

  Without them it is the optimizer itself, whose state checkpoints have.
  """
  parts = [x for x in (gradients, optimizer, updates) if x is not None]
  return optimizer if len(parts) == 1 else optax.chain(*parts)
