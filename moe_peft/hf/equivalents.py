# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Methods whose arrays are low-rank experts in another form.

The formats hold pairs and a router over the layer's inputs. What a method makes
such pairs of, its arrays, is multiplied out here, exactly.
"""

from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn
import numpy as np

from moe_peft.methods import comol
from moe_peft.methods import dora
from moe_peft.methods import flylora
from moe_peft.methods import mlae
from moe_peft.methods import spectral
from moe_peft.methods import ttlora

Tensors = Mapping[str, np.ndarray]


def low_rank(
    adapter: nn.Module, tensors: Tensors, layer: Tensors
) -> Tensors:
  """The tensors of an adapter by the names that the formats have.

  Args:
    adapter: The adapter.
    tensors: Its arrays, those of the router as exports call them.
    layer: The layer's own, `kernel` and perhaps `bias`.
  """
  if isinstance(adapter, dora.DoRA):
    return _dora(adapter, tensors, layer)
  return _FORMS.get(type(adapter), lambda _, tensors: tensors)(adapter, tensors)


def _comol(adapter: Any, tensors: Tensors) -> Tensors:
  """Cores are multiplied into `lora_b`, the router's kernel with `lora_a`."""
  lora_a, core, lora_b = (tensors[x] for x in ('lora_a', 'core', 'lora_b'))
  changed = {'lora_a': lora_a, 'lora_b': core @ lora_b}
  if 'router' in tensors:
    kernel = tensors['router']
    changed['router'] = kernel if adapter.reads_inputs else lora_a[0] @ kernel
  return changed


def _mlae(adapter: Any, tensors: Tensors) -> Tensors:
  del adapter
  lora_b = tensors['lora_b'] * tensors['coefficient'][:, None]
  return {'lora_a': tensors['lora_a'], 'lora_b': lora_b}


def _ttlora(adapter: Any, tensors: Tensors) -> Tensors:
  del adapter

  def cores(side):
    names = [name for name in tensors if name.startswith(f'{side}_core_')]
    return [tensors[f'{side}_core_{i}'] for i in range(len(names))]

  routers = {k: x for k, x in tensors.items() if '_core_' not in k}
  return routers | {
      'lora_a': np.asarray(ttlora.lora_a_of(cores('input'))),
      'lora_b': np.asarray(ttlora.lora_b_of(cores('output'))),
  }


def _flylora(adapter: Any, tensors: Tensors) -> Tensors:
  """Ranks are chosen by what they compute: `lora_a` is the router too."""
  del adapter
  changed = {k: x for k, x in tensors.items() if k != 'sparse_a'}
  changed['lora_a'] = tensors['sparse_a']
  if len(tensors['sparse_a']) > 1:
    changed['router'] = tensors['sparse_a'][..., 0].T
  return changed


def _spectral(adapter: Any, tensors: Tensors) -> Tensors:
  """What it began with is one pair more, whose sign is minus."""
  changed = {k: x for k, x in tensors.items() if not k.startswith('frozen')}
  taken = -adapter.residual * tensors['frozen_b']
  return changed | {
      'shared_lora_a': np.concatenate(list(tensors['frozen_a']), axis=1)[None],
      'shared_lora_b': np.concatenate(list(taken))[None],
  }


def _dora(adapter: Any, tensors: Tensors, layer: Tensors) -> Tensors:
  """Columns of the layer's products are scaled, and `lora_b` with them."""
  lora_a, lora_b = tensors['lora_a'], tensors['lora_b']
  kernel = np.asarray(layer['kernel']).reshape(lora_a.shape[1], -1)
  factor = np.asarray(dora.column_factor(
      kernel, lora_a[0], lora_b[0] * adapter.scale, tensors['magnitude']
  ))
  bias = np.asarray(layer.get('bias', np.zeros_like(factor))).reshape(-1)
  return {
      'lora_a': lora_a, 'lora_b': lora_b * factor,
      'column_scale': factor - 1, 'column_offset': (1 - factor) * bias,
  }


_FORMS: Mapping[type, Callable[[Any, Tensors], Tensors]] = {
    comol.CoMoL: _comol,
    mlae.MLAE: _mlae,
    ttlora.TTLoRA: _ttlora,
    flylora.FlyLoRA: _flylora,
    spectral.PiSSA: _spectral,
    spectral.MiLoRA: _spectral,
    spectral.OLoRA: _spectral,
    spectral.GOAT: _spectral,
    spectral.MiCA: lambda _, tensors: {
        'lora_a': tensors['lora_a'], 'lora_b': tensors['frozen_b'],
    },
}
