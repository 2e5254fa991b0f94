# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapters for those who have a training loop, and a model, of their own.

`moe_peft.adapt` composes what the engines use: injection, a method file, and
the partition of the parameters. Nothing of it is global, so several adapted
models live in one process.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from pathlib import Path
from typing import Any

from flax import linen as nn
import jax
import numpy as np
import safetensors
import safetensors.numpy

from moe_peft import atomic
from moe_peft import errors
from moe_peft import gin_methods
from moe_peft.core import inject
from moe_peft.core import losses
from moe_peft.core import tokens as tokens_lib
from moe_peft.core import trainable

Params = Mapping[str, Any]


def adapt(
    module: nn.Module,
    method: str = 'molora',
    sites: str | None = None,
    describe_tokens: Callable[[tokens_lib.Call], tokens_lib.Tokens] = (
        tokens_lib.t5x_tokens
    ),
    **options: Any,
) -> 'Adapted':
  """Puts the adapters of a method on the layers of a Linen model.

  Args:
    module: The model; its code, paths and parameters stay as they are.
    method: A file of gin/methods/, as 'molora', 'lora' or 'molora_topk', or the
      path of one of your own.
    sites: A regular expression over whole paths of layers, such as
      `.*/(q_proj|v_proj)`. By default the method's, for models whose layers are
      named as T5X's.
    describe_tokens: Says of a call of the model which tokens are padding; see
      `core/tokens.py`. Routers need it unless the model has T5X's signature.
    **options: The macros of the method file in lower case, as `num_experts=8`.

  Raises:
    errors.UserError: There is no such method or option, or a value is not
      allowed. Sites that match no layer are named by `module.init`.
  """
  file = gin_methods.MethodFile(method)
  for name, value in {'sites': sites, **options}.items():
    if name != 'sites' or value is not None:
      file.set(name.upper(), value)
  adapted = inject.AdaptedModule(
      module, file.value('ADAPTER_RULES'), describe_tokens
  )
  return Adapted(
      adapted, file.value('TRAINABLE_REGEX'), file.value('LOSS_FACTORS')
  )


@dataclasses.dataclass(frozen=True)
class Adapted:
  """A model with adapters, and what a loop needs to know of them.

  Attributes:
    module: The adapted model, with the call signature of the model.
    trainable_regex: Matches the whole paths of the parameters that train.
    loss_factors: Weights of the losses that adapters sow, by name.
  """

  module: inject.AdaptedModule
  trainable_regex: str
  loss_factors: Mapping[str, float]

  def trains(self, path: str | Sequence[Any]) -> bool:
    """Whether the parameter at a path trains.

    Args:
      path: `decoder/layers_0/query/kernel`, or a tuple of its names, as Flax
        NNX has it.
    """
    if not isinstance(path, str):
      path = '/'.join(map(str, path))
    # Optimizers change what has no gradient too, by weight decay.
    trains = trainable.matcher(self.trainable_regex)(path)
    return trains and not trainable.is_constant(path)

  def mask(self, params: Params) -> Any:
    """True for what trains, in a tree like the parameters, as Optax takes it.

    `optax.masked` leaves the gradients of all others as updates; freeze them by
    `optax.set_to_zero`, or give the optimizer what `split` returns.

    Args:
      params: Nested parameters.
    """
    return jax.tree_util.tree_map_with_path(
        lambda keys, _: self.trains(trainable.path_of(keys)), params
    )

  def split(self, params: Params) -> tuple[dict[str, Any], dict[str, Any]]:
    """What trains and what does not, as `{path: array}`.

    Args:
      params: Nested parameters.

    Raises:
      errors.UserError: Nothing would train.
    """
    flat = trainable.flatten(params)
    trained, frozen = trainable.split(flat, self.trainable_regex)
    constants = {k: x for k, x in trained.items() if not self.trains(k)}
    return (
        {k: x for k, x in trained.items() if k not in constants},
        frozen | constants,
    )

  def merge(self, *parts: Params) -> dict[str, Any]:
    """Nested parameters of several parts; a later one wins.

    Args:
      *parts: What `split` has returned, or nested parameters, as those of a
        pretrained base.
    """
    flat = {}
    for part in parts:
      flat |= trainable.flatten(part)
    return trainable.unflatten(flat)

  def auxiliary_loss(self, collections: Mapping[str, Any]) -> jax.Array:
    """The weighed losses of the routers, a scalar to add to the loss.

    Args:
      collections: What the model returned with `mutable=['intermediates']`.

    Raises:
      errors.UserError: A loss with a factor was not sown.
    """
    found = losses.collect(collections.get('intermediates', {}))
    return losses.total(found, self.loss_factors)

  def save(self, params: Params, file: str | Path) -> None:
    """Writes the adapters, and what else trains, as one safetensors file.

    Args:
      params: All parameters, nested: `merge(frozen, trained)`, since adapters
        have parts that do not train.
      file: The file; what is there is replaced.

    Raises:
      OSError: It cannot be written; nothing partial is left.
    """
    tensors = {
        # safetensors would write all of the array that a view is a part of.
        path: np.ascontiguousarray(jax.device_get(value))
        for path, value in self._kept(params).items()
    }
    atomic.write(file, safetensors.numpy.save(tensors))

  def load(self, params: Params, file: str | Path) -> dict[str, Any]:
    """Nested parameters with the adapters of a file.

    Args:
      params: Nested parameters of the adapted model.
      file: What `save` wrote.

    Raises:
      errors.UserError: The file cannot be read, or its tensors are not those of
        this model.
    """
    try:
      tensors = safetensors.numpy.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
      raise errors.UserError(
          f'It is no readable safetensors file ({error}).', where=file
      ) from error
    shapes = lambda tree: {path: x.shape for path, x in tree.items()}
    there, here = shapes(tensors), shapes(self._kept(params))
    wrong = sorted(k for k in there | here if there.get(k) != here.get(k))
    if wrong:
      raise errors.UserError(
          f'It does not fit the model: {wrong[0]} is '
          f'{there.get(wrong[0], "absent")} there and '
          f'{here.get(wrong[0], "absent")} here'
          + (f', and {len(wrong) - 1} more.' if wrong[1:] else '.'),
          where=file,
          remedy='Adapt the same model with the same method, sites and '
          'options, and save all parameters, not only what trains.',
      )
    return trainable.unflatten({**trainable.flatten(params), **tensors})

  def _kept(self, params: Params) -> dict[str, Any]:
    """What a file holds: what trains, and whole adapters, as frozen routers."""
    return {
        path: value
        for path, value in trainable.flatten(params).items()
        if trainable.is_adapter(path) or self.trains(path)
    }
