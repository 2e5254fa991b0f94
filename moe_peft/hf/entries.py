# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""How a parameter of ours is made of Hugging Face tensors, and back.

Three layouts of the parameters:

* t5: layers one by one, as T5X's `examples.t5` and `models/t5.py` have them.
* scan: T5X's `examples.scalable_t5`, and our models with `scan_layers`. A
  stack's name stands twice, all layers are stacked on axis 1, attention kernels
  keep their heads, and each layer has its own relative position bias.
* unrolled: `scalable_t5` with `scan_layers=False`: as scan, layer by layer.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses

import numpy as np

from moe_peft.core import trainable
from moe_peft.hf import lazy_arrays
from moe_peft.models import stack as stack_lib

LAYOUTS = ('t5', 'scan', 'unrolled')
# Where the layers stand in a scanned stack, here and in T5X's checkpoints.
SCAN_AXIS = stack_lib.PARAM_SCAN_AXIS
EMBEDDING = 'token_embedder/embedding'
LOGITS = 'decoder/logits_dense/kernel'


@dataclasses.dataclass(frozen=True)
class Entry:
  """One parameter of ours and the tensors it is made of.

  Attributes:
    path: Path of the parameter.
    sources: Hugging Face names, one for each layer where layers are stacked.
    hf_shape: Shape of each source.
    shape: Shape of the parameter, of one layer where they are stacked.
    transpose: Whether a source is transposed before it is given its shape.
    stacked: Whether the sources are stacked on `SCAN_AXIS`.
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

  def revert(self, parameter: np.ndarray, index: int) -> np.ndarray:
    """Returns the source of that index, taken out of the parameter."""
    array = parameter.take(index, SCAN_AXIS) if self.stacked else parameter
    if self.transpose:
      return array.reshape(self.hf_shape[::-1]).T
    return array.reshape(self.hf_shape)

  @property
  def full_shape(self) -> tuple[int, ...]:
    """Shape of the parameter, stacked layers included."""
    if not self.stacked:
      return self.shape
    return (self.shape[0], len(self.sources), *self.shape[1:])


def plain(path: str, source: str, shape: tuple[int, ...]) -> Entry:
  """A parameter that is its source: embeddings, scales of norms."""
  return Entry(path, (source,), shape, shape)


def dense(
    path: str, source: str, shape: tuple[int, int],
    full_shape: tuple[int, ...] | None = None,
) -> Entry:
  """The kernel [in, out] of the layer `path`, [out, in] in the module `source`.

  `full_shape` is that of a kernel whose heads are split.
  """
  return Entry(
      f'{path}/kernel', (f'{source}.weight',), shape[::-1],
      full_shape or shape, transpose=True,
  )


def ends(
    vocab_size: int, emb_dim: int, embedding: str, logits: str | None
) -> list[Entry]:
  """The embedding and the output layer, made of tensors of these names.

  An output layer that is tied to the embedding (None) is no parameter.
  """
  found = [plain(EMBEDDING, embedding, (vocab_size, emb_dim))]
  if logits:
    path = LOGITS.removesuffix('/kernel')
    module = logits.removesuffix('.weight')
    found.append(dense(path, module, (emb_dim, vocab_size)))
  return found


def projection(
    path: str, source: str, embed: int, heads: tuple[int, int], layout: str
) -> Entry:
  """The kernel of an attention projection; `out` leads back from the heads.

  It is [embed, heads * head_dim] in the layout 't5' and [embed, heads,
  head_dim] elsewhere; `heads` holds their number and size.
  """
  joined = heads[0] * heads[1]
  shape, split = (embed, joined), (embed, *heads)
  if path.endswith('/out'):
    shape, split = (joined, embed), (*heads, embed)
  return dense(path, source, shape, None if layout == 't5' else split)


def bias(
    path: str, source: str, shape: tuple[int, ...], layout: str
) -> Entry:
  """The bias of the layer `path`; heads side by side in the layout 't5'."""
  joined = (int(np.prod(shape)),)
  return Entry(
      f'{path}/bias', (f'{source}.bias',), joined,
      joined if layout == 't5' else shape,
  )


def mlp(
    modules: Mapping[str, str], prefix: str, embed: int, hidden: int
) -> Iterator[Entry]:
  """The kernels of an MLP, `modules` being their Hugging Face names by ours."""
  for name, theirs in modules.items():
    shape = (hidden, embed) if name == 'wo' else (embed, hidden)
    yield dense(f'mlp/{name}', f'{prefix}.{theirs}', shape)


def layered(
    tensors: Iterable[Entry], stack: str, num_layers: int, layout: str
) -> Iterator[Entry]:
  """Yields what becomes of the tensors that every layer has.

  Args:
    tensors: Paths within a layer, each with one source, in which `{layer}`
      stands for the number of the layer.
    stack: Name of the stack, which begins the path.
    num_layers: Layers of the stack.
    layout: One of `LAYOUTS`.
  """
  for entry in tensors:
    sources = tuple(entry.sources[0].format(layer=i) for i in range(num_layers))
    if layout == 'scan':
      path = f'{stack}/{stack}/{entry.path}'
      yield dataclasses.replace(entry, path=path, sources=sources, stacked=True)
      continue
    for index, source in enumerate(sources):
      path = f'{stack}/layers_{index}/{entry.path}'
      yield dataclasses.replace(entry, path=path, sources=(source,))


def source_shapes(found: Iterable[Entry]) -> dict[str, tuple[int, ...]]:
  """Shapes of the Hugging Face tensors by name."""
  return {name: entry.hf_shape for entry in found for name in entry.sources}


def lazy_params(
    found: Iterable[Entry], read: Callable[[str], np.ndarray], dtype: np.dtype
) -> dict[str, lazy_arrays.LazyArray]:
  """The parameters by path; `read` returns a Hugging Face tensor by name."""
  return {
      entry.path: lazy_arrays.LazyArray(
          entry.full_shape,
          lambda entry=entry: entry.convert(
              [read(source) for source in entry.sources]
          ),
          dtype,
      )
      for entry in found
  }


def unstack(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Splits the flat parameters of scanned stacks into those of `layers_i`."""
  result = {}
  for path, array in params.items():
    result |= trainable.by_layer(path, array, SCAN_AXIS)
  return result
