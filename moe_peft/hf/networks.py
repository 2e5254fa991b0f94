# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the exports must know of a network: one row for T5, one for decoders."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import numpy as np

from moe_peft import errors
from moe_peft.hf import decoder_base
from moe_peft.hf import entries as entries_lib
from moe_peft.hf import families
from moe_peft.hf import lazy_arrays
from moe_peft.hf import t5_base
from moe_peft.hf import t5_names
from moe_peft.models import decoder_config
from moe_peft.models import t5


@dataclasses.dataclass(frozen=True)
class Layer:
  """A layer of ours in transformers.

  Attributes:
    module: Name of its module.
    rows: The module's outputs that are the layer's, [start, stop), where
      several layers of ours are one there; None: all.
    width: All outputs of the module.
    source: The module's name where each layer is one, as `entries` says it.
    scales: The layer whose inputs it scales, for an activation.
  """

  module: str
  rows: tuple[int, int] | None = None
  width: int = 0
  source: str = ''
  scales: 'Layer | None' = None

  @property
  def part(self) -> dict[str, list[int]]:
    """The entry `rows` of a spec; empty where the layer has all rows."""
    return {} if self.rows is None else {'rows': list(self.rows)}


@dataclasses.dataclass(frozen=True)
class Network:
  """T5, or decoders.

  Where several layers of ours are one module of a family (Phi), `entries` has
  them apart; `kind` is the family, a `model_type`.

  Attributes:
    auto: The class of transformers that loads it.
    task_type: PEFT's name of what it does.
    pipeline: The Hub's name of that, or '' where it has none any more.
    entries: (config, layout) -> its parameters.
    to_hf: (config, config.json of the imported base or nothing) -> that of
      the exported model.
    activation: Name of the activation's module of an MLP.
    shares_embedding: Whether several modules hold the embedding.
  """

  auto: str
  task_type: str
  pipeline: str
  entries: Callable[[Any, str], list[entries_lib.Entry]]
  to_hf: Callable[[Any, Mapping[str, Any]], dict[str, Any]]
  activation: str
  shares_embedding: bool = False

  def stored_shapes(
      self, config: Any, kind: str
  ) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[str, slice]]]:
    """Shapes of the tensors of a family's files by name.

    Returns:
      The shapes, and for each tensor of `entries` that is a part of one, its
      name and the rows.
    """
    shapes = entries_lib.source_shapes(self.entries(config, 't5'))
    if kind not in families.FAMILIES:
      return shapes, {}
    return decoder_base.joined(shapes, families.FAMILIES[kind])

  def layers(self, config: Any, kind: str) -> dict[str, Layer]:
    """The layers that may carry adapters, by our path, unrolled."""
    shapes, parts = self.stored_shapes(config, kind)
    activation = _ACTIVATIONS.get(kind, self.activation)
    found = {}
    for entry in self.entries(config, 't5'):
      path, _, name = entry.path.rpartition('/')
      if name != 'kernel' or '/layers_' not in path:
        continue
      tensor = entry.sources[0]
      stored, part = parts.get(tensor, (tensor, None))
      found[path] = layer = Layer(
          stored.removesuffix('.weight'),
          part and (part.start, part.stop),
          shapes[stored][0],
          tensor.removesuffix('.weight'),
      )
      if path.endswith('/wo'):
        block = layer.module.rpartition('.')[0]
        act = path.removesuffix('wo') + 'act'
        found[act] = Layer(f'{block}.{activation}', scales=layer)
    return found

  def module_shapes(
      self, config: Any, kind: str
  ) -> dict[str, tuple[int, ...]]:
    """Shapes [out, in] of the modules that may carry adapters."""
    modules = {layer.module for layer in self.layers(config, kind).values()}
    shapes, _ = self.stored_shapes(config, kind)
    shapes = {k.removesuffix('.weight'): v for k, v in shapes.items()}
    return {k: v for k, v in shapes.items() if k in modules}

  def stored(
      self, tensors: Mapping[str, lazy_arrays.LazyArray], config: Any, kind: str
  ) -> dict[str, lazy_arrays.LazyArray]:
    """The tensors of a family's files, made of the tensors of `entries`."""
    shapes, parts = self.stored_shapes(config, kind)
    wholes: dict[str, list[lazy_arrays.LazyArray]] = {}
    for name, tensor in tensors.items():
      stored, _ = parts.get(name, (name, None))
      wholes.setdefault(stored, []).append(tensor)
    family = families.FAMILIES.get(kind)
    offset = np.float32(family.norm_offset if family else 0.0)
    result = {}
    for name, found in wholes.items():
      lacking = offset if _is_norm(name) else np.float32(0.0)
      result[name] = found[0]
      if lacking or len(found) > 1:
        read = functools.partial(_joined, found, lacking)
        result[name] = lazy_arrays.LazyArray(shapes[name], read)
    return result


def _joined(found: list[lazy_arrays.LazyArray], lacking: Any) -> np.ndarray:
  return np.concatenate([array.load() for array in found]) - lacking


def _is_norm(name: str) -> bool:
  return name.endswith('norm.weight')


# Families in which the module of the activation has another name.
_ACTIVATIONS = {'phi3': 'activation_fn'}
# Classes of transformers that exported code may build on.
ARCHITECTURES = (
    'T5ForConditionalGeneration', 'UMT5ForConditionalGeneration',
    *(f'{family.name}ForCausalLM' for family in families.FAMILIES.values()),
)
_NETWORKS = {
    t5.T5Config: Network(
        auto='AutoModelForSeq2SeqLM',
        task_type='SEQ_2_SEQ_LM',
        pipeline='',
        entries=t5_names.entries,
        to_hf=t5_base.to_hf,
        activation='act',
        shares_embedding=True,
    ),
    decoder_config.DecoderConfig: Network(
        auto='AutoModelForCausalLM',
        task_type='CAUSAL_LM',
        pipeline='text-generation',
        entries=decoder_base.entries,
        to_hf=decoder_base.to_hf,
        activation='act_fn',
    ),
}


def of(config: Any) -> Network:
  """The family of a network with this configuration.

  Raises:
    errors.UserError: If transformers has none of its kind.
  """
  network = _NETWORKS.get(type(config))
  if network is None:
    raise errors.UserError(
        'Only the T5 models and the decoders of gin/models/ can be exported, '
        f'and not a network with a {type(config).__name__}.', where='MODEL',
        remedy='Train a model of gin/models/ whose name does not begin with '
        't5x_, or an imported one.',
    )
  return network
