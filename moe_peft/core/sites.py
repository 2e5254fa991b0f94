# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sites: the layers that adapters can sit on, and what is known of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import difflib
import re

from flax import linen as nn
import jax
import jax.numpy as jnp

from moe_peft import errors

ADAPTER_SCOPE = 'adapter'
# An MLP has one input projection or two, and rules name those of both kinds.
_OTHER_NAMES = {'wi': {'wi_0', 'wi_1'}, 'wi_0': {'wi'}, 'wi_1': {'wi'}}


@dataclasses.dataclass(frozen=True)
class Site:
  """What an adapter knows of the layer it sits on; all read from the model.

  Attributes:
    path: Path of the layer, `decoder/layers_0/self_attention/key`.
    kernel_axis_names: Logical names of the layer's input and output features.
    num_heads: Heads of the layer's outputs; None where they have none.
    causal: Whether the layer must not see later tokens. True unless the path
      says that the layer reads an encoder.
    layer: Number of the layer in its stack; None inside `nn.scan`.
    num_layers: Layers of the stack; None where the model does not tell.
    activations: Names of the activation functions of the MLP the layer
      belongs to, as ('gelu', 'linear'); empty elsewhere.
    frozen: Returns the layer's own parameters, without a gradient: `kernel`
      <float>[in, out] and `bias` [out], those that there are; None where the
      layer has not run yet.
  """

  path: str = ''
  kernel_axis_names: tuple[str, str] = ('embed', 'embed')
  num_heads: int | None = None
  causal: bool = True
  layer: int | None = None
  num_layers: int | None = None
  activations: tuple[str, ...] = ()
  frozen: Callable[[], Mapping[str, jax.Array]] | None = dataclasses.field(
      default=None, compare=False, repr=False
  )


def make_site(module: nn.Module, names: tuple[str, str]) -> Site:
  """Reads from a layer, and from the model around it, all but `num_heads`.

  Args:
    module: The layer.
    names: Logical names of its input and output features.
  """
  path = '/'.join(module.path)
  stack = 'encoder' if 'encoder' in module.path else 'decoder'
  parent, config = module.parent, None
  activations = tuple(getattr(parent, 'activations', None) or ())
  while isinstance(parent, nn.Module):
    config = getattr(parent, 'config', config)
    parent = parent.parent
  number = re.search(r'(?:^|/)layers?_(\d+)(?:/|$)', path)
  num_layers = getattr(
      config, f'num_{stack}_layers', getattr(config, 'num_layers', None)
  )
  return Site(
      path=path,
      kernel_axis_names=names,
      causal=not reads_encoder(path),
      layer=int(number.group(1)) if number else None,
      num_layers=num_layers,
      activations=activations,
  )


def reads_encoder(path: str) -> bool:
  """Whether the tokens at this path are the encoder's, not the decoder's."""
  parts = path.split('/')
  cross = any('encoder_decoder' in part for part in parts)
  return 'encoder' in parts or (cross and parts[-1] in ('key', 'value'))


def axis_names(module: nn.Module) -> tuple[str, str] | None:
  """Logical axis names of a dense layer's inputs and outputs.

  Args:
    module: Any module.

  Returns:
    (in, out), or None if the module is not a layer that can be adapted: a
    dense layer of T5X, Flaxformer, Flax or ours, or a parameter-free module
    with an attribute `axis_names`.
  """
  names = getattr(module, 'kernel_axes', None)
  if names is None:
    names = getattr(module, 'kernel_axis_names', None)
  if names is None and hasattr(module, 'axis_names'):
    names = module.axis_names
    return (names[0], names[-1])
  if names is None and isinstance(module, nn.Dense | nn.DenseGeneral):
    return ('unmodeled', 'unmodeled')
  if not names:
    return None
  if len(names) == 2:
    return tuple(names)
  num_inputs = num_input_axes(module)
  return _join(names[:num_inputs]), _join(names[num_inputs:])


def num_input_axes(module: nn.Module) -> int:
  """Number of trailing axes of its inputs that a dense layer contracts."""
  axis = getattr(module, 'axis', -1)
  return 1 if isinstance(axis, int) else len(axis)


def _join(names: Sequence[str]) -> str:
  return 'joined_kv' if tuple(names) == ('heads', 'kv') else names[0]


def compile_path(path: str) -> re.Pattern[str]:
  """Compiles the regular expression of a rule.

  Raises:
    errors.UserError: If it is none.
  """
  try:
    return re.compile(path)
  except (re.error, TypeError) as error:
    raise errors.UserError(
        f'{path!r} is not a regular expression: {error}.',
        where='SITES',
        remedy="Write one that matches whole paths, as '.*/(query|value)'.",
    ) from error


def require_alternatives(path: str, seen: Iterable[str]) -> None:
  """Raises errors.UserError for an alternative that matches no layer.

  In '.*/(query|value)' it would be a misspelt name, which trains less than is
  meant. Names of the MLP of another kind of model may be absent.

  Args:
    path: The rule's regular expression.
    seen: Paths of the layers that could be adapted.
  """
  seen = list(seen)
  for group in re.finditer(r'\((\w+(?:\|\w+)+)\)', path):
    names = group[1].split('|')
    before, after = path[: group.start()], path[group.end() :]
    found = {
        name for name in names
        if any(re.fullmatch(f'{before}{name}{after}', layer) for layer in seen)
    }
    for name in names:
      if name not in found and not found & _OTHER_NAMES.get(name, set()):
        raise errors.UserError(
            f'{name} of SITES = {path!r} matches no layer.', where='SITES',
            remedy='Take it out, or write one of the layers of this model: '
            f'{", ".join(sorted({x.split("/")[-1] for x in seen}))}.',
        )


def require_match(path: str, seen: Iterable[str]) -> None:
  """Raises errors.UserError for a rule that matched no layer.

  Args:
    path: The rule's regular expression.
    seen: Paths of the layers that could be adapted.
  """
  plain = re.sub(r'[.*?()\\|]+', ' ', path).split()
  word = plain[-1].strip('/') if plain else path
  by_name = {layer.split('/')[-1]: layer for layer in seen}
  near = difflib.get_close_matches(word, by_name, n=3, cutoff=0.0)
  near = ', '.join(by_name[name] for name in near) or 'none'
  raise errors.UserError(
      f'SITES = {path!r} matches no layer that an earlier rule has left.',
      where='SITES',
      remedy='It must match the whole path of a layer. The nearest layers of '
      f'this model: {near}.',
  )


def number_scanned_layers(scope) -> None:
  """Fills the `layer_index` of adapters in a scanned stack with 0, 1, 2, ...

  A layer inside `nn.scan` cannot know its own number, and the scans of T5X's
  networks do not tell it; the stacked parameter can. Parameters of that name
  outside of adapters are the model's own and stay as they are. Methods whose
  experts differ by layer read it (see methods/mola.py).
  """
  params = scope.root._variables.get('params', {})  # pylint: disable=protected-access
  constant = (ADAPTER_SCOPE, 'layer_index')

  def fill(path, leaf):
    names = tuple(getattr(key, 'key', None) for key in path[-2:])
    if names != constant or leaf.size == 1:
      return leaf
    return jnp.arange(leaf.size, dtype=leaf.dtype).reshape(leaf.shape)

  numbered = jax.tree_util.tree_map_with_path(fill, params)
  scope.root._variables['params'] = numbered  # pylint: disable=protected-access
