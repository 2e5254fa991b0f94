# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Puts adapters on the layers of an unchanged Linen model.

`AdaptedModule` runs the wrapped model under `nn.intercept_methods`. A layer
whose path matches a rule keeps its own parameters, under their own names, and
gains one child scope, `adapter`. The model's code, its parameter paths and
their values stay as they are, so every checkpoint of the base still loads.
"""

from collections.abc import Callable, Sequence
import dataclasses
import difflib
import functools
import inspect
import math
import re
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft.core import einsum_layers
from moe_peft.core import losses
from moe_peft.core import routing

ADAPTER_SCOPE = 'adapter'


@dataclasses.dataclass(frozen=True)
class AdapterRule:
  """Which layers get which adapter.

  Attributes:
    path: Regular expression that must match the whole path of the layer, for
      example `.*/(query|value)`. Begin it with `.*/`: some models have a
      prefix of their own.
    adapter_factory: Builds the adapter, as `adapter_factory(site=, name=)`. A
      factory and not a module: one module given to many layers would be one
      adapter shared by all.
    site_input: The adapter changes the inputs of the layer instead of its
      outputs: it is called as `adapter(inputs, inputs)` before the layer runs.
    siblings: Names of layers beside this one (same parent) that ran before
      it. The adapter is then called as `adapter(inputs, siblings=...)` before
      the layer and returns what the layer is to read and what is added to its
      outputs; see `methods/mixlora.py`.
  """

  path: str
  adapter_factory: Callable[..., nn.Module]
  site_input: bool = False
  siblings: Sequence[str] = ()


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
  """

  path: str = ''
  kernel_axis_names: tuple[str, str] = ('embed', 'embed')
  num_heads: int | None = None
  causal: bool = True
  layer: int | None = None
  num_layers: int | None = None
  activations: tuple[str, ...] = ()


class AdaptedModule(nn.Module):
  """A Linen model with adapters on the layers that `rules` name.

  It has the parameters, methods and call signatures of `module`. Two keyword
  arguments are its own, on every method: `inputs_embedding`
  (`<float>[batch, features]`, an external embedding of each example, for
  routers with `unit = 'embedding'`) and `step` (`<int32>[]`, for routers whose
  number of experts grows while training).

  Attributes:
    module: The model.
    rules: The first rule that matches a layer decides.
    consistency: Run a second pass while training and sow
      `consistency_loss`, the symmetric divergence of the two (AdaMix, arXiv
      2205.12410). The result is that of the first pass.
  """

  module: nn.Module
  rules: Sequence[AdapterRule] = ()
  consistency: bool = False

  def __post_init__(self):
    super().__post_init__()
    if self.scope is not None:  # Same parameter paths as the wrapped model.
      nn.share_scope(self, self.module)

  @nn.compact
  def __call__(self, *args, inputs_embedding=None, step=None, **kwargs):
    run = _Run(self, inputs_embedding, step)
    result = run(self.module, *args, **kwargs)
    if self.consistency and self.has_rng('dropout'):
      other = run(self.module, *args, **kwargs)
      targets = run.arguments.get('decoder_target_tokens')
      loss = losses.consistency_loss(
          result, other, None if targets is None else targets > 0
      )
      self.sow('intermediates', 'consistency_loss', loss.reshape(1, 1, 1))
    return result

  @nn.compact
  def encode(self, *args, inputs_embedding=None, step=None, **kwargs):
    run = _Run(self, inputs_embedding, step)
    return run(self.module.encode, *args, **kwargs)

  @nn.compact
  def decode(self, *args, inputs_embedding=None, step=None, **kwargs):
    run = _Run(self, inputs_embedding, step)
    return run(self.module.decode, *args, **kwargs)

  @property
  def scan_layers(self) -> bool:
    """Read by T5X's decoding."""
    return getattr(self.module, 'scan_layers', False)


class _Run:
  """One run of the wrapped model with the adapters in place.

  Flax calls `_intercept` in place of every method of every module. So this is
  not a module, and calls no method of one that a rule could match: such a call
  would be intercepted in its turn, without end.
  """

  def __init__(self, adapted: AdaptedModule, inputs_embedding, step):
    self.adapted = adapted
    self.rules = tuple(adapted.rules)
    self.given = {'embedding': inputs_embedding, 'step': step}
    self.arguments: dict[str, Any] = {}
    self.matched: set[AdapterRule] = set()
    self.seen: list[str] = []
    self._last: tuple[Any, Any, Any] = (None, None, None)
    self._siblings: dict[str, tuple[jax.Array, jax.Array]] = {}
    self._recorded = {name for r in self.rules for name in r.siblings}

  def __call__(self, method, *args, **kwargs):
    # Entered here and not around `apply`: a context entered outside of an
    # already compiled function would silently do nothing.
    with nn.intercept_methods(self._intercept):
      result = method(*args, **kwargs)
    self._last = (None, None, None)  # No tracer outlives the run.
    if self.adapted.is_initializing():
      _check_rules(self.rules, self.matched, self.seen)
      _number_scanned_layers(self.adapted.scope)
    return result

  def _intercept(self, next_fun, args, kwargs, context):
    module = context.module
    # A wrapper that hands all its arguments on names none; then the first
    # module inside that does.
    if module is self.adapted.module or not self.arguments:
      self._read_arguments(context, args, kwargs)
    if context.method_name != '__call__' or ADAPTER_SCOPE in module.path:
      return next_fun(*args, **kwargs)
    names, einsum = axis_names(module), None
    if names is None:
      einsum = einsum_layers.find(module, args, kwargs)
      if einsum is None:
        return next_fun(*args, **kwargs)
      names = ('unmodeled', 'unmodeled')
    path = '/'.join(module.path)
    self.seen.append(path)
    rule = next((r for r in self.rules if re.fullmatch(r.path, path)), None)
    if rule is None:
      outputs = next_fun(*args, **kwargs)
    else:
      self.matched.add(rule)
      outputs = (
          self._adapt(rule, next_fun, args, kwargs, module, names)
          if einsum is None
          else self._adapt_einsum(
              rule, next_fun(*args, **kwargs), module, names, einsum
          )
      )
    if module.path[-1] in self._recorded and einsum is None:
      self._siblings[path] = (args[0], outputs)
    return outputs

  def _adapt(self, rule, next_fun, args, kwargs, module, names):
    """Runs the layer and its adapter.

    The layer runs here and not inside the adapter: `param_with_axes` gives a
    parameter to the module on top of Flax's stack, which would be the adapter.
    """
    inputs, num_inputs = args[0], _num_input_axes(module)
    tokens_shape = inputs.shape[: inputs.ndim - num_inputs]
    flat = lambda x: x.reshape(*tokens_shape, -1)
    site = make_site(module, names)
    tokens = self._tokens(site)
    make = functools.partial(rule.adapter_factory, name=ADAPTER_SCOPE)
    if rule.siblings:
      siblings = self._take_siblings(module.path[:-1], rule.siblings)
      inputs, update = make(site=site)(flat(inputs), siblings, tokens)
      outputs = next_fun(inputs.reshape(args[0].shape), *args[1:], **kwargs)
      return outputs + update.reshape(outputs.shape).astype(outputs.dtype)
    if rule.site_input:
      site = dataclasses.replace(site, kernel_axis_names=(names[0], names[0]))
      inputs = make(site=site)(flat(inputs), flat(inputs), tokens)
      return next_fun(inputs.reshape(args[0].shape), *args[1:], **kwargs)
    read = self._apart(inputs, module.path[:-1])
    outputs = next_fun(*args, **kwargs)
    if outputs.ndim == len(tokens_shape) + 2:
      site = dataclasses.replace(site, num_heads=outputs.shape[-2])
    adapted = make(site=site)(flat(read), flat(outputs), tokens)
    return adapted.reshape(outputs.shape)

  def _adapt_einsum(self, rule, outputs, module, names, layer):
    """Runs the adapter of a layer that is an einsum."""
    if rule.siblings or rule.site_input:
      raise errors.UserError(
          f'{"/".join(module.path)} is an einsum: the rule {rule.path!r} can '
          'only change its outputs. Choose other layers for this method.'
      )
    site = dataclasses.replace(
        make_site(module, names), num_heads=layer.num_heads(outputs)
    )
    adapter = rule.adapter_factory(name=ADAPTER_SCOPE, site=site)
    adapted = adapter(
        layer.flat_inputs(), layer.flat_outputs(outputs), self._tokens(site)
    )
    return layer.restored(adapted, outputs)

  def _apart(self, inputs: jax.Array, parent: tuple[str, ...]) -> jax.Array:
    """The inputs as adapters read them: a copy, which XLA takes out again.

    Layers of one block that share their inputs (query, key, value) share the
    copy, so the gradients of their adapters are summed apart from their own. On
    a mesh with a `model` axis XLA then adds up the layers' gradients first and
    sends the sum once; with those of adapters in between it sends each alone.

    Args:
      inputs: Of the layer.
      parent: Path of the module around it. Within one module all is traced
        together, so what is remembered cannot come from another trace.
    """
    known, block, read = self._last
    if known is not inputs or block != parent:
      read = jnp.copy(inputs)
      self._last = inputs, parent, read
    return read

  def _take_siblings(self, parent, names):
    paths = ['/'.join(parent + (name,)) for name in names]
    found = {}
    for name, path in zip(names, paths, strict=True):
      if path in self._siblings:  # Popped: no tracer outlives its block.
        found[name] = self._siblings.pop(path)
    return found

  def _read_arguments(self, context, args, kwargs):
    method = getattr(type(context.module), context.method_name, None)
    if method is None:  # Decorators may have left another name.
      return
    signature = inspect.signature(method)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if inspect.Parameter.VAR_POSITIONAL in kinds:
      return
    try:
      bound = signature.bind(None, *args, **kwargs)
    except TypeError:
      return  # The call itself will explain what is wrong.
    self.arguments.update(list(bound.arguments.items())[1:])  # Without self.

  def _tokens(self, site: Site) -> routing.Tokens:
    """Describes the tokens that pass through the site."""
    call, encoder = self.arguments, reads_encoder(site.path)
    inputs = call.get('encoder_input_tokens')
    prompt_valid = None if inputs is None else inputs > 0
    prompt_ids = call.get('encoder_segment_ids')
    if encoder:
      valid, segment_ids = prompt_valid, prompt_ids
    else:
      targets = call.get('decoder_target_tokens')
      # One step of decoding: its only token is real, even if its id is 0.
      known = targets is not None and not call.get('decode', False)
      valid = targets > 0 if known else None
      segment_ids = call.get('decoder_segment_ids') if known else None
    prompt = None if encoder else call.get('encoded')
    return routing.Tokens(
        valid=valid,
        segment_ids=segment_ids,
        prompt=prompt,
        prompt_valid=None if prompt is None else prompt_valid,
        prompt_segment_ids=None if prompt is None else prompt_ids,
        **self.given,
    )


def axis_names(module: nn.Module) -> tuple[str, str] | None:
  """Logical axis names of a layer's inputs and outputs.

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
  if names is None and isinstance(module, (nn.Dense, nn.DenseGeneral)):
    return ('unmodeled', 'unmodeled')
  if not names:
    return None
  if len(names) == 2:
    return tuple(names)
  num_inputs = _num_input_axes(module)
  return _join(names[:num_inputs]), _join(names[num_inputs:])


def _join(names: Sequence[str]) -> str:
  return 'joined_kv' if tuple(names) == ('heads', 'kv') else names[0]


def _num_input_axes(module: nn.Module) -> int:
  axis = getattr(module, 'axis', -1)
  return 1 if isinstance(axis, int) else len(axis)


def reads_encoder(path: str) -> bool:
  """Whether the tokens at this path are the encoder's, not the decoder's."""
  parts = path.split('/')
  cross = any('encoder_decoder' in part for part in parts)
  return 'encoder' in parts or (cross and parts[-1] in ('key', 'value'))


def make_site(module: nn.Module, names: tuple[str, str]) -> Site:
  """Reads from the layer, and from the model around it, all but num_heads."""
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


def _check_rules(rules, matched, seen):
  """Raises errors.UserError for a rule that matched no layer."""
  for rule in rules:
    if rule in matched:
      continue
    plain = re.sub(r'[.*?()\\|]+', ' ', rule.path).split()
    word = plain[-1].strip('/') if plain else rule.path
    by_name = {path.split('/')[-1]: path for path in seen}
    near = difflib.get_close_matches(word, by_name, n=3, cutoff=0.0)
    near = ', '.join(by_name[name] for name in near) or 'none'
    raise errors.UserError(
        f'inject.AdapterRule.path = {rule.path!r} matches no layer that an '
        'earlier rule has left. It must match the whole path of a layer. The '
        f'nearest layers of this model: {near}'
    )


def _number_scanned_layers(scope) -> None:
  """Fills every `layer_index` of a scanned stack with 0, 1, 2, ...

  A layer inside `nn.scan` cannot know its own number; the stacked parameter
  can. Methods whose experts differ by layer read it (see methods/mola.py).
  """
  params = scope.root._variables.get('params', {})  # pylint: disable=protected-access

  def fill(path, leaf):
    if path[-1].key != 'layer_index' or math.prod(leaf.shape) == 1:
      return leaf
    return jnp.arange(leaf.size, dtype=leaf.dtype).reshape(leaf.shape)

  numbered = jax.tree_util.tree_map_with_path(fill, params)
  scope.root._variables['params'] = numbered  # pylint: disable=protected-access
