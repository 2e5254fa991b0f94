# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A pass of the bare model before the adapted one, for routers that read it.

A rule asks for it in `before_call` (inject.py), as that of X-LoRA does (arXiv
2402.07148). It has a cache of its own, so a model that decodes step by step
reads the same hidden states as in one pass.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import inspect
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax

from moe_peft import errors
from moe_peft.core import sites
from moe_peft.core import tokens

_CACHE = 'first_pass'


@dataclasses.dataclass(frozen=True)
class FirstPass:
  """One call of a model that can be made without its adapters.

  Attributes:
    adapted: The adapted model, an `inject.AdaptedModule` in a compact method.
    method: Name of the method that is called.
    args: Its arguments.
    kwargs: Its keyword arguments.
  """

  adapted: nn.Module
  method: str
  args: Sequence[Any]
  kwargs: Mapping[str, Any]

  def hidden_states(self, path: str) -> dict[bool, jax.Array]:
    """Runs the bare model, without a gradient, and keeps its cache.

    Args:
      path: Regular expression of the modules whose outputs are read, one of
        each stack.

    Returns:
      Outputs, <float>[batch, length, features], of the encoder (True) and of
      the decoder (False), as far as the method runs them. While the adapted
      model is made they are those of other parameters.

    Raises:
      errors.UserError: If no module matches, two of a stack do, or one inside
        of a scan.
    """
    pattern = sites.compile_path(path)
    state = self._run(lambda module, name: (
        name == '__call__' and pattern.fullmatch('/'.join(module.path))
    ))
    return _outputs(state.get('intermediates', {}), path)

  def _run(
      self, capture: Callable[[nn.Module, str], bool]
  ) -> Mapping[str, Any]:
    """Runs the bare model; returns the collections that it has written."""
    adapted = self.adapted
    model, variables = adapted.module.unbind()
    options = dict(capture_intermediates=capture, method=self._call)
    if adapted.is_initializing():  # Then it has no parameters yet.
      _, state = model.init_with_output(
          jax.random.key(0), mutable=True, **options
      )
      return state
    kept = {k: x for k, x in variables.items() if k != 'cache'}
    caches = adapted.is_mutable_collection('cache')
    if caches and adapted.has_variable('cache', _CACHE):
      kept['cache'] = adapted.get_variable('cache', _CACHE)
    rngs = {k: adapted.make_rng(k) for k in adapted.scope.rngs if k != 'params'}
    # What else it writes, as the statistics of batches, the second pass writes.
    _, state = model.apply(
        kept, rngs=rngs, mutable=nn.DenyList('params'), **options
    )
    if caches and 'cache' in state:
      adapted.put_variable('cache', _CACHE, state['cache'])
    return state

  def _call(self, model: nn.Module) -> Any:
    """Calls the method on a model that is bound."""
    if self.method != 'decode':
      return getattr(model, self.method)(*self.args, **self.kwargs)
    # It was given what the adapted encoder made.
    given = tokens.named(type(model).decode, self.args, self.kwargs)
    known = inspect.signature(model.encode).parameters
    given['encoded'] = model.encode(**{
        name: x for name, x in given.items() if name in known
    })
    return model.decode(**given)


def _outputs(sown: Mapping[str, Any], path: str) -> dict[bool, jax.Array]:
  """What was captured, without a gradient; as `FirstPass.hidden_states`."""
  found, pattern = {}, sites.compile_path(path)
  for names, outputs in traverse_util.flatten_dict(sown).items():
    module = '/'.join(names[:-1])
    if names[-1] != '__call__' or not pattern.fullmatch(module):
      continue
    hidden = outputs[-1]
    if getattr(hidden, 'ndim', None) != 3:
      raise errors.UserError(
          f'{module} has no outputs [batch, length, features] outside of a '
          'scan.', where='HIDDEN_STATES',
          remedy='Name the module behind the last layer, as decoder_norm.',
      )
    stack = sites.reads_encoder(module)
    if stack in found:
      raise errors.UserError(
          f'HIDDEN_STATES = {path!r} matches several modules of a stack, '
          f'{module} for one.', where='HIDDEN_STATES',
          remedy='Name the module behind the last layer, as decoder_norm.',
      )
    found[stack] = jax.lax.stop_gradient(hidden)
  if not found:
    raise errors.UserError(
        f'HIDDEN_STATES = {path!r} matches no module of this model.',
        where='HIDDEN_STATES',
        remedy='Name the norm behind the last layer of each stack.',
    )
  return found
