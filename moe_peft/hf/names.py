# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Names, shapes and orientation of T5's tensors, Hugging Face and T5X.

Three layouts of the parameters:

* t5: T5X's `examples.t5`, and `models/t5.py`.
* scan: `examples.scalable_t5`, and `models/t5.py` with `scan_layers`. A stack's
  name stands twice, all layers are stacked on axis 1, attention kernels keep
  their heads, and each layer has its own relative position bias.
* unrolled: `scalable_t5` with `scan_layers=False`: as scan, layer by layer.

The relative position bias is one table per stack in Hugging Face's T5 and mT5,
so it is replicated on import; on export all layers must agree.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import re

import numpy as np

from moe_peft import errors
from moe_peft.core import trainable
from moe_peft.models import stack as stack_lib
from moe_peft.models import t5

LAYOUTS = ('t5', 'scan', 'unrolled')
# Where the layers stand in a scanned stack, here and in T5X's checkpoints.
SCAN_AXIS = stack_lib.PARAM_SCAN_AXIS
EMBEDDING = 'token_embedder/embedding'
LOGITS = 'decoder/logits_dense/kernel'
HF_EMBEDDINGS = (
    'shared.weight',
    'encoder.embed_tokens.weight',
    'decoder.embed_tokens.weight',
)
HF_LOGITS = 'lm_head.weight'
# In old checkpoints; transformers ignores it as well.
HF_IGNORED = (
    'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight',
)
_PROJECTIONS = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}
# T5X's name of a block of a layer: its sublayer and name in Hugging Face.
_BLOCKS = {
    'encoder': {
        'attention': 'layer.0.SelfAttention',
        'mlp': 'layer.1.DenseReluDense',
    },
    'decoder': {
        'self_attention': 'layer.0.SelfAttention',
        'encoder_decoder_attention': 'layer.1.EncDecAttention',
        'mlp': 'layer.2.DenseReluDense',
    },
}
_NORMS = {
    'encoder': ('pre_attention_layer_norm', 'pre_mlp_layer_norm'),
    'decoder': (
        'pre_self_attention_layer_norm',
        'pre_cross_attention_layer_norm',
        'pre_mlp_layer_norm',
    ),
}


@dataclasses.dataclass(frozen=True)
class Entry:
  """One T5X parameter and the tensors it is made of.

  Attributes:
    path: T5X path.
    sources: Hugging Face names, one for each layer where layers are stacked.
    hf_shape: Shape of each source.
    shape: Shape of the parameter, of one layer where they are stacked.
    transpose: Whether a source is transposed before it is given its shape.
    stacked: Whether the sources are stacked on axis 1.
  """

  path: str
  sources: tuple[str, ...]
  hf_shape: tuple[int, ...]
  shape: tuple[int, ...]
  transpose: bool = False
  stacked: bool = False

  def convert(self, arrays: list[np.ndarray]) -> np.ndarray:
    """Returns the parameter, made of its sources."""
    layers = [
        (x.T if self.transpose else x).reshape(self.shape) for x in arrays
    ]
    return np.stack(layers, axis=SCAN_AXIS) if self.stacked else layers[0]

  def revert(self, parameter: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the sources' names and values."""
    for index, source in enumerate(self.sources):
      array = parameter[:, index] if self.stacked else parameter
      shape = self.hf_shape[::-1] if self.transpose else self.hf_shape
      array = array.reshape(shape)
      yield source, array.T if self.transpose else array

  def full_shape(self) -> tuple[int, ...]:
    """Shape of the parameter, stacked layers included."""
    if not self.stacked:
      return self.shape
    return (self.shape[0], len(self.sources), *self.shape[1:])


def entries(config: t5.T5Config, layout: str) -> list[Entry]:
  """Returns all parameters but the embedding and the output layer."""
  found = []
  for stack, num_layers in (
      ('encoder', config.num_encoder_layers),
      ('decoder', config.num_decoder_layers),
  ):
    width = (config.emb_dim,)
    found.append(
        Entry(
            f'{stack}/{stack}_norm/scale',
            (f'{stack}.final_layer_norm.weight',),
            width,
            width,
        )
    )
    tensors = list(_layer_tensors(stack, config, layout != 't5'))
    bias = _position_bias(stack, config)
    if layout == 't5':
      found.append(dataclasses.replace(bias, path=f'{stack}/{bias.path}'))
    else:
      tensors.append(bias)
    for entry in tensors:
      found.extend(layered(entry, stack, num_layers, layout))
  return found


def layered(
    entry: Entry, stack: str, num_layers: int, layout: str
) -> Iterator[Entry]:
  """Yields what becomes of one tensor of every layer.

  Args:
    entry: Its path within a layer, and one source, in which `{layer}` stands
      for the number of the layer.
    stack: Name of the stack, which begins the path.
    num_layers: Layers of the stack.
    layout: One of `LAYOUTS`.
  """
  sources = tuple(entry.sources[0].format(layer=i) for i in range(num_layers))
  if layout == 'scan':
    path = f'{stack}/{stack}/{entry.path}'
    yield dataclasses.replace(entry, path=path, sources=sources, stacked=True)
    return
  for index, source in enumerate(sources):
    path = f'{stack}/layers_{index}/{entry.path}'
    yield dataclasses.replace(entry, path=path, sources=(source,))


def readers(
    found: Sequence[Entry], tensors: Mapping[str, np.ndarray]
) -> dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]]:
  """Shape and reader by path of what is made of `tensors`."""
  return {
      entry.path: (
          entry.full_shape(),
          lambda entry=entry: entry.convert(
              [tensors[source] for source in entry.sources]
          ),
      )
      for entry in found
  }


def _position_bias(stack: str, config: t5.T5Config) -> Entry:
  size = (config.num_heads, config.relative_attention_num_buckets)
  name = 'layer.0.SelfAttention.relative_attention_bias.weight'
  return Entry(
      'relpos_bias/rel_embedding',
      (f'{stack}.block.0.{name}',),
      size[::-1],
      size,
      transpose=True,
  )


def _layer_tensors(
    stack: str, config: t5.T5Config, split_heads: bool
) -> Iterator[Entry]:
  """Yields the tensors of a layer; `{layer}` stands for its number."""
  heads = (config.num_heads, config.head_dim)
  embed, joined = config.emb_dim, config.num_heads * config.head_dim
  for block, sublayer in _BLOCKS[stack].items():
    prefix = f'{stack}.block.{{layer}}.{sublayer}'
    if block == 'mlp':
      gated = len(config.mlp_activations) > 1
      for name in ('wi_0', 'wi_1', 'wo') if gated else ('wi', 'wo'):
        shape = (embed, config.mlp_dim)
        shape = shape[::-1] if name == 'wo' else shape
        yield dense(f'{block}/{name}', f'{prefix}.{name}', shape, shape)
      continue
    for name, letter in _PROJECTIONS.items():
      shape = (joined, embed) if name == 'out' else (embed, joined)
      full = (*heads, embed) if name == 'out' else (embed, *heads)
      yield dense(
          f'{block}/{name}',
          f'{prefix}.{letter}',
          shape,
          full if split_heads else shape,
      )
  for index, name in enumerate(_NORMS[stack]):
    source = f'{stack}.block.{{layer}}.layer.{index}.layer_norm.weight'
    yield Entry(f'{name}/scale', (source,), (embed,), (embed,))


def dense(
    path: str,
    source: str,
    shape: tuple[int, int],
    full_shape: tuple[int, ...],
) -> Entry:
  """A kernel; torch keeps `[out, in]` where we keep `[in, out]`.

  Args:
    path: Path of the layer.
    source: Hugging Face module.
    shape: Input and output features.
    full_shape: Shape of the kernel, heads perhaps split.
  """
  return Entry(
      f'{path}/kernel',
      (f'{source}.weight',),
      shape[::-1],
      full_shape,
      transpose=True,
  )


def hf_module(path: str) -> str:
  """Returns the Hugging Face module of a layer that carries an adapter.

  Args:
    path: T5X path of the layer, unrolled: `encoder/layers_0/attention/query`.

  Raises:
    errors.UserError: If transformers' T5 has no such module.
  """
  match = re.fullmatch(r'(encoder|decoder)/layers_(\d+)/(\w+)/(\w+)', path)
  if match and match[3] in _BLOCKS[match[1]]:
    stack, layer, block, name = match.groups()
    name = name if block == 'mlp' else _PROJECTIONS.get(name)
    if name in ('q', 'k', 'v', 'o', 'wi', 'wi_0', 'wi_1', 'wo', 'act'):
      return f'{stack}.block.{layer}.{_BLOCKS[stack][block]}.{name}'
  raise errors.UserError(
      f"The adapter at {path} sits on a layer that transformers' T5 does not "
      'have as a module of its own. Restrict SITES to attention projections, '
      'wi, wi_0, wi_1, wo and act.'
  )


def t5x_layer(module: str) -> str:
  """Inverse of `hf_module`.

  Raises:
    errors.UserError: If it is not a dense layer of T5.
  """
  match = re.fullmatch(
      r'(encoder|decoder)\.block\.(\d+)\.(layer\.\d\.\w+)\.(\w+)', module
  )
  if match:
    stack, layer, sublayer, name = match.groups()
    blocks = {v: k for k, v in _BLOCKS[stack].items()}
    letters = {v: k for k, v in _PROJECTIONS.items()}
    if sublayer in blocks:
      name = letters.get(name, name)
      return f'{stack}/layers_{layer}/{blocks[sublayer]}/{name}'
  raise errors.UserError(
      f'{module} is no dense layer of a T5; was the adapter trained on '
      'another model?'
  )


def unstack(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Splits the parameters of scanned stacks, and renames them to `layers_i`.

  Args:
    params: Flat parameters of any layout.
  """
  result = {}
  for path, array in params.items():
    result |= trainable.by_layer(path, array, SCAN_AXIS)
  return result
