# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""TT-LoRA (arXiv 2408.01008): the halves of a LoRA are tensor trains.

  outputs + alpha * (inputs @ lora_a) @ lora_b

with lora_a [in, rank] the product of cores [rank, factor, rank], one for each
factor of the number of inputs, the first of them the fastest axis; lora_b
[rank, out] likewise of the outputs', the first the slowest. TT-LoRA MoE
(2504.21190) has one such expert for each task. From the paper's code: rank 5,
alpha 16 and no division by the rank. Ours: the last core begins at 0, so that
training begins at the base (released cores are random and divided by their
norm); factors of at most 16 where none are given; and, with several experts,
MoLoRA's routers over sums of experts (the released code adds up cores).
"""

from collections.abc import Sequence
import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft.methods import lora

_LARGEST = 16


class TTLoRA(lora.LoRA):
  """LoRA of a few hundred numbers a layer.

  Attributes:
    input_factors: Their product is the number of inputs; None: chosen.
    output_factors: The same of the outputs.
  """

  rank: int = 5
  input_factors: Sequence[int] | None = None
  output_factors: Sequence[int] | None = None

  @property
  def scale(self) -> float:
    return self.alpha

  @nn.nowrap
  def kernels(self, in_features, out_features):
    """Returns `lora_a` [num_experts, in, rank] and `lora_b`."""
    inputs = _factors(self.input_factors, in_features, 'input_factors')
    outputs = _factors(self.output_factors, out_features, 'output_factors')
    inner, last = self.rank**-0.5, len(outputs) - 1
    return (
        lora_a_of([
            self._core(f'input_core_{i}', (self.rank if i else 1, factor,
                       self.rank), inner if i else 2e-2)
            for i, factor in enumerate(inputs)
        ]),
        lora_b_of([
            self._core(f'output_core_{i}', (self.rank, factor,
                       self.rank if i < last else 1), inner if i < last else 0)
            for i, factor in enumerate(outputs)
        ]),
    )

  @nn.nowrap
  def _core(self, name, shape, deviation) -> jax.Array:
    init = nn.initializers.normal(deviation)
    return self.param_with_axes(
        name, init, (self.num_experts, *shape),
        ('expert', None, None, None),
    )


def lora_a_of(cores: Sequence[jax.Array]) -> jax.Array:
  """The product of the cores of the inputs.

  Args:
    cores: <float>[num_experts, rank, factor, rank] each, the first rank 1.

  Returns:
    <float>[num_experts, in, rank].
  """
  product = cores[0][:, 0]
  for core in cores[1:]:
    product = jnp.einsum('ear,erms->emas', product, core)
    product = product.reshape(len(core), -1, core.shape[-1])
  return product


def lora_b_of(cores: Sequence[jax.Array]) -> jax.Array:
  """The product of the cores of the outputs, <float>[num_experts, rank, out].

  Args:
    cores: <float>[num_experts, rank, factor, rank] each, the last rank 1.
  """
  product = cores[-1][..., 0]
  for core in reversed(cores[:-1]):
    product = jnp.einsum('erns,esa->erna', core, product)
    product = product.reshape(len(core), core.shape[1], -1)
  return product


def _factors(
    given: Sequence[int] | None, number: int, name: str
) -> tuple[int, ...]:
  """Factors of a number, those that are given or of at most 16 (larger primes
  stay whole).

  Raises:
    errors.UserError: If those that are given have another product.
  """
  if given is not None:
    if math.prod(given) != number or min(given) < 1:
      raise errors.UserError(
          f'The product of {tuple(given)} is not {number}, the features of '
          'this layer.', where=f'ttlora.TTLoRA.{name}',
          remedy='Leave it at None, or give layers of another size a rule of '
          'their own.',
      )
    return tuple(given)
  found, divisor = [], 2
  while number > 1:
    if number % divisor:
      divisor += 1
    else:
      number //= divisor
      found.append(divisor)
  merged: list[int] = []
  for factor in sorted(found, reverse=True):
    if merged and merged[-1] * factor <= _LARGEST:
      merged[-1] *= factor
    else:
      merged.append(factor)
  return tuple(merged) or (1,)
