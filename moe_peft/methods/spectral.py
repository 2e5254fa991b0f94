# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""LoRAs that begin with parts of the frozen kernel: PiSSA and its relatives.

  outputs + alpha / rank * sum_e weight_e * (inputs @ lora_a[e]) @ lora_b[e]
          - residual * alpha / rank * sum_e (inputs @ frozen_a[e]) @ frozen_b[e]

Papers take what the pair begins with out of the kernel. Here the kernel stays,
and the pair `frozen_a`, `frozen_b`, equal to the first one, is subtracted at
rank r: the base is untouched, checkpoints hold adapters only, and since the
pair is in them, nothing depends on the signs of another machine's SVD. Both are
made once the base is read (core/initial_values.py). With U S V the SVD of a
kernel [in, out] and s = alpha / rank:

  PiSSA (2404.02948)   lora_a, lora_b = U sqrt(S / s), sqrt(S / s) V, largest S
  MiLoRA (2406.09044)  the same, smallest S
  OLoRA (2406.01775)   R^T, Q^T of kernel^T = Q R, the first of each
  MiCA (2604.01694)    lora_a = 0, lora_b = V, smallest S, and frozen
  GOAT (2502.16894)    E experts, each from a segment of the spectrum of its
  own,                      S / (10 s); residual 1 / E, normalized top-2

From the papers' code. GOAT begins at the base in the mean over experts only: a
token's gates differ from 1 / E. Ours: rank 16 and alpha 16 where there is no
router.
"""

from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moe_peft import errors
from moe_peft.core import dispatch
from moe_peft.core import low_rank
from moe_peft.core import routing
from moe_peft.core import selection
from moe_peft.methods import molora

# GOAT's rho: experts begin with a tenth of their segments.
_SHRINK = 10.0
_ONE = 'Leave it at 1: experts that begin alike stay alike. GOAT has several.'


class PiSSA(molora.MoLoRA):
  """A LoRA that begins with the largest singular triples."""

  num_experts: int = 1
  rank: int = 16

  @property
  def residual(self) -> float:
    """Factor of what is subtracted."""
    return 1.0

  @nn.compact
  def __call__(self, inputs, outputs, tokens=None):
    """Returns the adapted outputs, <float>[batch, length, out_features]."""
    # The same products as below: at first their difference is exactly 0.
    nothing = jnp.zeros_like(outputs)
    update = super().__call__(inputs, nothing, tokens)
    in_axis, out_axis = self.site.kernel_axis_names
    make, zeros = self.param_with_axes, nn.initializers.zeros
    shape = self.num_experts, inputs.shape[-1], self.rank
    frozen_a = make('frozen_a', zeros, shape, ('expert', in_axis, 'rank'))
    shape = self.num_experts, self.rank, outputs.shape[-1]
    frozen_b = make('frozen_b', zeros, shape, ('expert', 'rank', out_axis))
    dtype = self.dtype or outputs.dtype
    frozen_a = jax.lax.stop_gradient(frozen_a).astype(dtype)
    frozen_b = jax.lax.stop_gradient(frozen_b) * (self.residual * self.scale)
    hidden = low_rank.project(
        inputs.astype(dtype), dispatch.down_rows(frozen_a)
    )
    rows = dispatch.replicate(frozen_b.astype(dtype)).swapaxes(0, 1)
    taken = low_rank.expand(hidden, rows.reshape(-1, outputs.shape[-1]))
    return outputs + (update - taken.astype(outputs.dtype))

  @nn.nowrap
  def from_kernel(self, kernel: np.ndarray) -> Mapping[str, np.ndarray]:
    """The initial values of a layer.

    Args:
      kernel: <float32>[in, out].

    Returns:
      `lora_a` [num_experts, in, rank] and `lora_b`, and both as `frozen_a`
      and `frozen_b`.
    """
    check_size(self, kernel)
    lora_a, lora_b = self.parts(kernel)
    if len(lora_a) == 1:
      self.require_one_expert(_ONE)
    return {
        'lora_a': lora_a, 'lora_b': lora_b,
        'frozen_a': lora_a, 'frozen_b': lora_b,
    }

  @nn.nowrap
  def parts(self, kernel):
    """The pairs that experts begin with."""
    return self.triples(kernel, [slice(self.rank)], 1.0)

  @nn.nowrap
  def triples(self, kernel, places, shrink):
    """Pairs of singular triples, one expert for each of `places`."""
    u, s, v = np.linalg.svd(kernel, full_matrices=False)
    root = np.sqrt(s / (self.scale * shrink))
    lora_a = np.stack([u[:, place] * root[place] for place in places])
    lora_b = np.stack([v[place] * root[place, None] for place in places])
    return lora_a, lora_b


class MiLoRA(PiSSA):
  """A LoRA that begins with the smallest singular triples."""

  @nn.nowrap
  def parts(self, kernel):
    return self.triples(kernel, [slice(-self.rank, None)], 1.0)


class OLoRA(PiSSA):
  """A LoRA that begins with an orthonormal `lora_b`.

  It is not divided by the scale: the base moves by `alpha / rank` times it.
  """

  @nn.nowrap
  def parts(self, kernel):
    q, r = np.linalg.qr(kernel.T)
    return r[: self.rank].T[None], q[:, : self.rank].T[None]


class MiCA(molora.MoLoRA):
  """A LoRA whose `lora_b` are the minor output directions of the kernel.

  These, `frozen_b`, do not train, and `lora_a` begins at 0: nothing is taken
  out of the base.
  """

  num_experts: int = 1
  rank: int = 16

  @nn.nowrap
  def kernels(self, in_features, out_features):
    """Returns `lora_a` [1, in, rank] and `frozen_b` [1, rank, out]."""
    in_axis, out_axis = self.site.kernel_axis_names
    lora_a = self.param_with_axes(
        'lora_a', nn.initializers.zeros,
        (self.num_experts, in_features, self.rank), ('expert', in_axis, 'rank'),
    )
    frozen_b = self.param_with_axes(  # Random for as long as there is no base.
        'frozen_b', nn.initializers.normal(out_features**-0.5),
        (self.num_experts, self.rank, out_features),
        ('expert', 'rank', out_axis),
    )
    return lora_a, jax.lax.stop_gradient(frozen_b)

  @nn.nowrap
  def from_kernel(self, kernel: np.ndarray) -> Mapping[str, np.ndarray]:
    """The initial values of a layer; see `PiSSA.from_kernel`."""
    check_size(self, kernel)
    self.require_one_expert(_ONE)
    v = np.linalg.svd(kernel, full_matrices=False)[2]
    return {'frozen_b': v[-self.rank :][None]}


def check_size(adapter: molora.MoLoRA, kernel: np.ndarray) -> None:
  """Raises errors.UserError if a kernel has too few singular values."""
  if adapter.rank * adapter.num_experts > min(kernel.shape):
    raise errors.UserError(
        f'The kernel {list(kernel.shape)} of {adapter.site.path} has too few '
        f'singular values for {adapter.num_experts} experts of rank '
        f'{adapter.rank}.', where='RANK', remedy='Take a smaller one.',
    )


class GOATRouter(routing.Router):
  """Normalized top-2."""

  select: Any = selection.TopK(k=2, normalize=True)


class GOAT(PiSSA):
  """Experts that begin with different segments of the spectrum."""

  counts_experts = True  # See mola.by_depth.
  num_experts: int = 8
  rank: int = 4
  alpha: float = 64.0
  router_factory: Callable[..., routing.Router] = GOATRouter

  @property
  def residual(self) -> float:
    return 1.0 / self.num_experts

  @property
  def starts_at_base(self) -> bool:
    return False  # Only in the mean over experts.

  @nn.nowrap
  def parts(self, kernel):
    segment = min(kernel.shape) // self.num_experts
    places = [
        slice(e * segment, e * segment + self.rank)
        for e in range(self.num_experts)
    ]
    return self.triples(kernel, places, _SHRINK)
