# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the exports must know of a family of networks: one row each."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from moe_peft import errors
from moe_peft.hf import decoder_base
from moe_peft.hf import entries as entries_lib
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
    scales: Of an activation: the module whose inputs it scales.
  """

  module: str
  rows: tuple[int, int] | None = None
  width: int = 0
  scales: str | None = None


@dataclasses.dataclass(frozen=True)
class Network:
  """A family.

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

  def layers(self, config: Any) -> dict[str, Layer]:
    """The layers that may carry adapters, by our path, unrolled."""
    found = {}
    for entry in self.entries(config, 't5'):
      path, _, name = entry.path.rpartition('/')
      if name != 'kernel' or '/layers_' not in path:
        continue
      module = entry.sources[0].removesuffix('.weight')
      found[path] = Layer(module)
      if path.endswith('/wo'):
        block = module.rpartition('.')[0]
        act = path.removesuffix('wo') + 'act'
        found[act] = Layer(f'{block}.{self.activation}', scales=module)
    return found


  def module_shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
    """Shapes [out, in] of the modules that may carry adapters."""
    modules = {layer.module for layer in self.layers(config).values()}
    shapes = entries_lib.source_shapes(self.entries(config, 't5'))
    shapes = {k.removesuffix('.weight'): v for k, v in shapes.items()}
    return {k: v for k, v in shapes.items() if k in modules}


# Classes of transformers that exported code may build on.
ARCHITECTURES = ('T5ForConditionalGeneration', 'LlamaForCausalLM')
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
