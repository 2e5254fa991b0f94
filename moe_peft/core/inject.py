# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Puts adapters on the layers of an unchanged Linen model.

`AdaptedModule` runs the wrapped model under `nn.intercept_methods`. A layer
whose path matches a rule keeps its own parameters, under their own names, and
gains one child scope, `adapter`. The model's code, its parameter paths and
their values stay as they are, so every checkpoint of the base still loads.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft.core import dense_layers
from moe_peft.core import einsum_layers
from moe_peft.core import first_pass
from moe_peft.core import sites
from moe_peft.core import tokens as tokens_lib

Layer = dense_layers.DenseLayer | einsum_layers.EinsumLayer


@dataclasses.dataclass(frozen=True)
class OutputRule:
  """The adapter changes the outputs of the layers that match.

  It is called as `adapter(inputs, outputs, tokens)` after the layer and returns
  new outputs.

  Attributes:
    path: Regular expression that must match the whole path of the layer, for
      example `.*/(query|value)`. Begin it with `.*/`: some models have a
      prefix of their own.
    adapter_factory: Builds the adapter, as `adapter_factory(site=, name=)`. A
      factory and not a module: one module given to many layers would be one
      adapter shared by all.
    siblings: Names of layers beside this one (same parent) that ran before
      it, whose inputs and outputs `apply` finds in `layer.siblings`.
  """

  path: str
  adapter_factory: Callable[..., nn.Module]
  siblings: Sequence[str] = dataclasses.field(default=(), hash=False)

  def make(self, site: sites.Site) -> nn.Module:
    """Builds the adapter of one site."""
    return self.adapter_factory(site=site, name=sites.ADAPTER_SCOPE)

  def apply(
      self, layer: Layer, site: sites.Site, tokens: tokens_lib.Tokens,
      read: jax.Array,
  ) -> jax.Array:
    """Runs a layer and its adapter.

    Args:
      layer: The call of the layer.
      site: The layer.
      tokens: What is known of the tokens.
      read: The layer's inputs as adapters read them.

    Returns:
      New outputs of the layer.
    """
    outputs = layer.run()
    site = dataclasses.replace(
        site, num_heads=layer.num_heads(outputs), frozen=layer.frozen
    )
    adapted = self.make(site)(
        layer.flat_inputs(read), layer.flat_outputs(outputs), tokens
    )
    return layer.restored(adapted, outputs)

  def before_call(
      self, model: nn.Module, first: first_pass.FirstPass
  ) -> Mapping[bool, jax.Array]:
    """Makes what adapters find in `Tokens.first_pass`; nothing by default.

    Args:
      model: The adapted model.
      first: The call that comes, without adapters.

    Returns:
      <float>[batch, length, n] of the encoder (True) and the decoder (False).
    """
    return {}

  def after_call(
      self, model: nn.Module, arguments: dict[str, Any], result: Any,
      again: Callable[[], Any],
  ) -> None:
    """Sows what depends on the outputs of the whole model; nothing by default.

    Args:
      model: The adapted model.
      arguments: What the model was called with, by name.
      result: What it returned.
      again: Runs the model once more, with other random numbers.
    """


@dataclasses.dataclass(frozen=True)
class InputRule(OutputRule):
  """The adapter changes the inputs of the layers that match.

  It is called as `adapter(inputs, inputs, tokens)` before the layer.
  """

  def apply(self, layer, site, tokens, read):
    del read
    axis, _ = site.kernel_axis_names
    site = dataclasses.replace(site, kernel_axis_names=(axis, axis))
    inputs = layer.flat_inputs()
    return layer.run(self.make(site)(inputs, inputs, tokens))


@dataclasses.dataclass(frozen=True)
class BlockRule(OutputRule):
  """The adapter changes a block of which the layer that matches is the last.

  It is called as `adapter(inputs, siblings, tokens)` before the layer and
  returns what the layer is to read and what is added to its outputs; see
  `methods/mixlora.py`.
  """

  def apply(self, layer, site, tokens, read):
    del read
    adapter = self.make(site)
    inputs, update = adapter(layer.flat_inputs(), layer.siblings, tokens)
    outputs = layer.run(inputs)
    return outputs + layer.restored(update, outputs).astype(outputs.dtype)


class AdaptedModule(nn.Module):
  """A Linen model with adapters on the layers that `rules` name.

  It has the parameters, methods and call signatures of `module`. Four keyword
  arguments are its own, on every method: `step` (`<int32>[]`, for routers whose
  number of experts grows while training), `in_prompt` (`<int32>[batch,
  length]`, 1 for the prompt in the rows of a decoder), `example_ids`
  (`<int32>[batch, n]`, see `tokens.with_example_ids`), and `adapters`. With
  `adapters=False` (static) the same parameters give the pass of the bare model,
  to the last bit: no adapter runs, is made or sows anything. So one set of
  parameters is both the model that trains and the one it is compared with.

  Attributes:
    module: The model.
    rules: The first rule that matches a layer decides.
    describe_tokens: Says which tokens of a call are padding; see `tokens.py`.
  """

  module: nn.Module
  rules: Sequence[OutputRule] = ()
  describe_tokens: Callable[[tokens_lib.Call], tokens_lib.Tokens] = (
      tokens_lib.t5x_tokens
  )

  def __post_init__(self):
    super().__post_init__()
    if self.scope is not None:  # Same parameter paths as the wrapped model.
      nn.share_scope(self, self.module)

  @nn.compact
  def __call__(self, *args, **kwargs):
    return self._run('__call__', *args, **kwargs)

  @nn.compact
  def encode(self, *args, **kwargs):
    return self._run('encode', *args, **kwargs)

  @nn.compact
  def decode(self, *args, **kwargs):
    return self._run('decode', *args, **kwargs)

  @nn.nowrap
  def _run(
      self, method, *args, step=None, in_prompt=None, example_ids=None,
      adapters=True, **kwargs,
  ):
    """Runs a method of the model."""
    call = getattr(self.module, method)
    if not adapters:
      return call(*args, **kwargs)
    first = first_pass.FirstPass(self, method, args, kwargs)
    read = {rule: rule.before_call(self, first) for rule in self.rules}
    injection = _Injection(self, step, in_prompt, example_ids, read)
    run = lambda: injection.run(call, *args, **kwargs)
    result = run()
    if method == '__call__':
      for rule in self.rules:
        rule.after_call(self, injection.arguments, result, run)
    return result

  @property
  def scan_layers(self) -> bool:
    """Read by T5X's decoding."""
    return getattr(self.module, 'scan_layers', False)


class _Injection:
  """One call of the wrapped model with the adapters in place.

  Flax calls `_intercept` in place of every method of every module. So this is
  not a module, and calls no method of one that a rule could match: such a call
  would be intercepted in its turn, without end.
  """

  def __init__(
      self, adapted: AdaptedModule, step: jax.Array | None,
      in_prompt: jax.Array | None, example_ids: jax.Array | None,
      read: Mapping[OutputRule, Mapping[bool, jax.Array]],
  ):
    self._adapted, self._step, self._in_prompt = adapted, step, in_prompt
    self._example_ids, self._read = example_ids, read
    self._rules = [(sites.compile_path(r.path), r) for r in adapted.rules]
    self.arguments: dict[str, Any] = {}
    self._matched: set[OutputRule] = set()
    self._seen: list[str] = []
    self._last: tuple[Any, Any, Any] = (None, None, None)
    self._siblings: dict[str, tuple[jax.Array, jax.Array]] = {}
    self._recorded = {n for rule in adapted.rules for n in rule.siblings}

  def run(self, method, *args, **kwargs):
    """Runs a method of the model."""
    # Entered here and not around `apply`: a context entered outside of an
    # already compiled function would silently do nothing.
    with nn.intercept_methods(self._intercept):
      result = method(*args, **kwargs)
    self._last = (None, None, None)  # No tracer outlives the call.
    if self._adapted.is_initializing():
      for rule in self._adapted.rules:
        if rule not in self._matched:
          sites.require_match(rule.path, self._seen)
        sites.require_alternatives(rule.path, self._seen)
      sites.number_scanned_layers(self._adapted.scope)
    return result

  def _intercept(self, next_fun, args, kwargs, context):
    module = context.module
    # A wrapper that hands all its arguments on names none of them; then the
    # first module inside that does is read.
    if module is self._adapted.module or not self.arguments:
      self._read_arguments(context, args, kwargs)
    if context.method_name != '__call__' or sites.ADAPTER_SCOPE in module.path:
      return next_fun(*args, **kwargs)
    names = sites.axis_names(module)
    find = einsum_layers.find if names is None else dense_layers.find
    found = find(module, next_fun, args, kwargs, {})
    if found is None:
      return next_fun(*args, **kwargs)
    path = '/'.join(module.path)
    self._seen.append(path)
    rule = next((r for p, r in self._rules if p.fullmatch(path)), None)
    if rule is None:
      outputs = found.run()
    else:
      self._matched.add(rule)
      outputs = self._adapt(rule, found, module, names)
    if module.name in self._recorded:
      self._siblings[path] = (found.inputs, outputs)
    return outputs

  def _adapt(self, rule, layer, module, names):
    """Runs the layer and its adapter."""
    parent = module.path[:-1]
    site = sites.make_site(module, names or ('unmodeled', 'unmodeled'))
    layer = dataclasses.replace(
        layer, siblings=self._take_siblings(parent, rule.siblings)
    )
    read = self._apart(layer.inputs, parent)
    return rule.apply(layer, site, self._tokens(site, rule), read)

  def _apart(self, inputs: jax.Array, parent: tuple[str, ...]) -> jax.Array:
    """The inputs as adapters read them: a copy, which XLA takes out again.

    Layers of one block that share their inputs (query, key, value) share the
    copy, so the gradients of their adapters are summed apart from their own. On
    a mesh with a `model` axis XLA then adds up the layers' gradients first and
    sends the sum once; with those of adapters in between it sends each alone.

    Args:
      inputs: Inputs of the layer.
      parent: Path of the module around it. Within one module all is traced
        together, so what is remembered cannot come from another trace.
    """
    known, block, read = self._last
    if known is not inputs or block != parent:
      read = jnp.copy(inputs)
      self._last = inputs, parent, read
    return read

  def _take_siblings(self, parent, names):
    paths = {name: '/'.join((*parent, name)) for name in names}
    # Popped: no tracer outlives its block.
    return {
        name: self._siblings.pop(path)
        for name, path in paths.items()
        if path in self._siblings
    }

  def _read_arguments(self, context, args, kwargs):
    name = context.method_name
    # Decorators may have left another name; to look it up calls no model.
    if name == '__call__' or not name.startswith('__'):
      method = getattr(type(context.module), name, None)
      self.arguments.update(tokens_lib.named(method, args, kwargs))

  def _tokens(self, site: sites.Site, rule: OutputRule) -> tokens_lib.Tokens:
    """Describes the tokens that pass through the site."""
    arguments = {**self.arguments, 'in_prompt': self._in_prompt}
    reads_encoder = sites.reads_encoder(site.path)
    call = tokens_lib.Call(arguments, reads_encoder)
    tokens = self._adapted.describe_tokens(call)
    if not isinstance(tokens, tokens_lib.Tokens):
      raise errors.UserError(
          f'describe_tokens returned {type(tokens).__name__}.',
          where='inject.AdaptedModule.describe_tokens',
          remedy='It must return moe_peft.core.tokens.Tokens.',
      )
    tokens = tokens.replace(
        step=self._step, first_pass=self._read[rule].get(reads_encoder)
    )
    return tokens_lib.with_example_ids(tokens, self._example_ids)
