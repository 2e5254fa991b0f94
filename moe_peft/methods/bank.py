# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A bank of LoRAs that were trained apart, and routers over them.

  outputs + sum_e weight_e * (inputs @ lora_a[e]) @ lora_b[e]

`python -m moe_peft bank` makes the experts: each in its singular form, `lora_a`
the left singular vectors of its update times the singular values, largest
first, `lora_b` the right ones (ours). So what Arrow (arXiv 2405.11157) and
SpectR (2504.03454) ask of an expert stands in `lora_a` itself, and nothing is
computed beforehand or stored beside it. An expert that a layer does not have is
zero; these routers leave it out.

The router is any other (`scores.TokenScores`, learned), or one of those below,
most of which train nothing. PHATGOOSE (2402.05859) has a gate for each expert,
trained with that expert alone (`GatedExpert`). From PEFT's code are Arrow's k =
3, the temperature 1 and inputs that are not normalized; from PHATGOOSE's, k = 2
and the gate at zero; SpectR's k and its temperature are ours.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft.core import dispatch
from moe_peft.core import low_rank
from moe_peft.core import scores
from moe_peft.core import selection
from moe_peft.methods import adamix
from moe_peft.methods import molora
from moe_peft.methods import smear
from moe_peft.methods import smoe_dropout

_EPSILON = 1e-5  # Of torch's layer norm.


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrowScores(scores.TokenScores):
  """How far an expert's first singular vector reaches (arXiv 2405.11157).

  `|x . v_e| / temperature`, with v_e the direction that the expert amplifies
  most. Inputs are not normalized, so the temperature is relative to the size of
  activations, which differs from site to site.

  Attributes:
    temperature: Divides the logits.
  """

  learned = False

  temperature: float = 1.0

  def check(self, router):
    scores.check_temperature(self.temperature)

  def rows(self, router, features):
    return None

  def of_experts(self, inputs, kernel):
    # Nothing is learned here: the experts themselves are the router.
    kernel = jax.lax.stop_gradient(kernel.astype(jnp.float32))
    sizes, there = self.sizes(inputs.astype(jnp.float32), kernel)
    return selection.mask(sizes / self.temperature, there)

  def sizes(
      self, inputs: jax.Array, kernel: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Returns how much of a token each expert takes up, and which are there.

    Args:
      inputs: <float32>[batch, length, in].
      kernel: <float32>[num_experts, in, rank], in singular form.

    Returns:
      <float32>[batch, length, num_experts] and <bool>[num_experts].
    """
    first = kernel[:, :, 0]
    size = jnp.linalg.norm(first, axis=-1)
    there = size > 0
    first /= jnp.where(there, size, 1.0)[:, None]
    return jnp.abs(low_rank.project(inputs, first)), there


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpectRScores(ArrowScores):
  """How large an expert's whole update of a token is (arXiv 2504.03454).

  `|x A_e B_e| / temperature`; the rows of B_e are orthonormal, so that is the
  norm of `x A_e`.
  """

  def sizes(self, inputs, kernel):
    num_experts, _, rank = kernel.shape
    hidden = low_rank.project(inputs, dispatch.down_rows(kernel))
    hidden = hidden.reshape(*inputs.shape[:2], rank, num_experts)
    # A root of zero has no gradient.
    sizes = jnp.sqrt(jnp.maximum(jnp.square(hidden).sum(axis=2), 1e-30))
    return sizes, jnp.any(kernel != 0, axis=(1, 2))


@dataclasses.dataclass(frozen=True)
class GateScores(scores.TokenScores):
  """PHATGOOSE's (arXiv 2402.05859): gates that were trained apart compete.

  `LN(x) . LN(v_e) / sqrt(features)`, without scale and bias. The gates come
  with the bank; a gate of zero is one of an expert that is not there.
  """

  learned = False

  def rows(self, router, features):
    return None

  def logits(self, router, inputs, tokens, product):
    gates = router.param_with_axes(
        'gates', nn.initializers.zeros, (inputs.shape[-1], router.num_experts),
        (router.reads.axis, 'unmodeled'),
    )
    # Normed gates have the sum 0, so the mean of the inputs drops out.
    inputs = inputs.astype(jnp.float32)
    columns = smear.layer_norm(low_rank.rows(gates), -1, _EPSILON)
    logits = low_rank.project(inputs, columns)
    variance = inputs.var(axis=-1, keepdims=True) + _EPSILON
    logits *= jax.lax.rsqrt(variance * inputs.shape[-1])
    return selection.mask(logits, jnp.any(gates != 0, axis=0))


class NoScores(adamix.NoScores):
  """Equal logits: with `selection.Soft` the uniform average, a control."""


class RandomScores(smoe_dropout.FrozenScores):
  """Logits of a kernel that stays random, a control."""


class Bank(molora.MoLoRA):
  """Experts in singular form, under any router.

  Attributes:
    active: Numbers of the experts that may be used; None: all. The others have
      the gate zero and are in no sum, so a bank that has grown answers as
      before, to the last bit.
  """

  active: Sequence[int] | None = None

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    """Returns the adapted outputs, <float>[batch, length, out_features]."""
    if self.active is None or self.num_experts == 1:
      return super().__call__(inputs, outputs, tokens)
    lora_a, lora_b = self.kernels(inputs.shape[-1], outputs.shape[-1])
    dtype, index = self.dtype or outputs.dtype, self._index()
    inputs, lora_a = inputs.astype(dtype), lora_a[index].astype(dtype)
    routing, product = self._routed(inputs, tokens, lora_a)
    routing = routing.replace(
        combine_weights=routing.combine_weights[..., index],
        num_selected=min(routing.num_selected, len(self.active)),
    )
    execution = dispatch.choose(
        self.execution, routing, len(self.active), self.rank
    )
    mixture = dispatch.down(
        execution, inputs, lora_a, routing, product=product
    )
    scaled = lora_b[index] * self.scale
    return outputs + mixture.up(scaled.astype(dtype)).astype(outputs.dtype)

  @nn.nowrap
  def _expert_logits(self, router, inputs, kernel):
    logits = super()._expert_logits(router, inputs, kernel)
    if logits is None or self.active is None:
      return logits
    # The others are masked, whatever they have.
    everyone = jnp.zeros((*logits.shape[:-1], self.num_experts), logits.dtype)
    return everyone.at[..., self._index()].set(logits)

  @nn.nowrap
  def _active(self):
    there = super()._active()
    if self.active is None:
      return there
    chosen = jnp.isin(jnp.arange(self.num_experts), self._index())
    return chosen if there is None else there & chosen

  @nn.nowrap
  def _index(self) -> jax.Array:
    """The numbers of the active experts, <int32>[num_active]."""
    numbers = tuple(self.active)
    wrong = [x for x in numbers if not 0 <= x < self.num_experts]
    if wrong or not numbers or len(set(numbers)) < len(numbers):
      raise errors.UserError(
          f'ACTIVE_EXPERTS = {numbers} must be different numbers of experts, '
          f'from 0 to {self.num_experts - 1}.',
          where='ACTIVE_EXPERTS',
      )
    return jnp.array(numbers)


class GatedExpert(molora.MoLoRA):
  """One frozen expert under a sigmoid gate that learns when it helps.

  PHATGOOSE's second stage (arXiv 2402.05859): `sigmoid(x . gate)` weighs the
  update, the gate is zero at first. `python -m moe_peft bank` reads the gate
  with the expert.
  """

  num_experts: int = 1

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    """Returns the adapted outputs, <float>[batch, length, out_features]."""
    self.require_one_expert('Make a bank of that expert alone.')
    gate = self.param_with_axes(
        'gate', nn.initializers.zeros, (inputs.shape[-1],),
        (self.site.kernel_axis_names[0],),
    )
    logits = low_rank.project(inputs.astype(jnp.float32), gate[None])
    alone: Any = super().__call__(inputs, jnp.zeros_like(outputs), tokens)
    return outputs + jax.nn.sigmoid(logits).astype(outputs.dtype) * alone
