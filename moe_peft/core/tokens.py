# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is known of the tokens at a site: padding, packing, prompt, ids.

A model is called with arguments of its own names. `describe_tokens`, a field of
`inject.AdaptedModule`, turns one call into `Tokens`: `t5x_tokens` knows T5X's
signature, `tokens_argument` reads another argument, `all_real` says that there
is no padding. Where none of them is chosen for an unknown signature, whatever
depends on padding is refused: it would count padding silently.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import inspect
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from moe_peft import errors

# The feature of batches that holds the ids of examples, see `with_example_ids`.
EXAMPLE_IDS = 'example_ids'


@struct.dataclass
class Tokens:
  """What is known of the tokens at a site, besides their features.

  Attributes:
    valid: <bool>[batch, length], False for padding; None: all are real.
    segment_ids: <int32>[batch, length] of packed examples, or None.
    prompt: <float>[batch, prompt_length, features], the encoder's outputs, at
      the sites of a decoder; None elsewhere.
    prompt_valid: <bool>[batch, prompt_length], or None.
    prompt_segment_ids: <int32>[batch, prompt_length], or None.
    in_prompt: <bool>[batch, length], at the sites of a decoder without an
      encoder: which tokens are the prompt's and no padding. None elsewhere, in
      steps of decoding, and where nothing says it.
    cached: Whether the model keeps what it has read for its next call, as in
      decoding.
    step: <int32>[], the training step, or None.
    example_ids: <int32>[batch, length], or [batch, 1] where a row is one
      example: the id that was given with each token's example (its task,
      language, client), from 0; -1 where there is none, as at padding. None
      where no ids are given.
    first_pass: <float>[batch, length, n], what the site's rule has made of a
      pass without adapters (`inject.OutputRule.before_call`), or None.
    known: Whether anything said which tokens are padding.
  """

  valid: jax.Array | None = None
  segment_ids: jax.Array | None = None
  prompt: jax.Array | None = None
  prompt_valid: jax.Array | None = None
  prompt_segment_ids: jax.Array | None = None
  in_prompt: jax.Array | None = None
  cached: bool = struct.field(pytree_node=False, default=False)
  step: jax.Array | None = None
  example_ids: jax.Array | None = None
  first_pass: jax.Array | None = None
  known: bool = struct.field(pytree_node=False, default=True)

  def require_known(self, what: str) -> None:
    """Raises errors.UserError if nobody knows which tokens are padding.

    Args:
      what: What depends on it.
    """
    if not self.known:
      raise errors.UserError(
          f'{what} must leave padding out, and the arguments of this model do '
          'not tell which tokens are padding.',
          where='inject.AdaptedModule.describe_tokens',
          remedy='Bind inject.AdaptedModule.describe_tokens to '
          '@tokens.tokens_argument (the name of the argument with the token '
          'ids), to @tokens.all_real if there is no padding, or to a function '
          'of your own.',
      )

  def require_example_ids(self, what: str) -> jax.Array:
    """Returns the ids of the examples.

    Args:
      what: What depends on them.

    Raises:
      errors.UserError: If none are given.
    """
    if self.example_ids is None:
      raise errors.UserError(
          f'{what} needs an id of each example, and none is given.',
          where='EXAMPLE_IDS',
          remedy='Set it to the names of tasks, or of values of id_key in '
          'local.register_task; moe_peft.infer takes --example_id.',
      )
    return self.example_ids


@dataclasses.dataclass(frozen=True)
class Call:
  """One call of a model, seen from a site.

  Attributes:
    arguments: What the model was called with, by the names of its signature.
    reads_encoder: Whether the tokens at the site are the encoder's.
  """

  arguments: Mapping[str, Any]
  reads_encoder: bool


def named(
    method: Callable[..., Any] | None, args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> dict[str, Any]:
  """The arguments of a call by the names of the method's signature.

  Args:
    method: The function of a class, called on one of its objects, or None.
    args: Arguments, without the object.
    kwargs: Keyword arguments.

  Returns:
    Arguments by name; none for a method that does not name them, or that could
    not be called so.
  """
  if method is None:
    return {}
  signature = inspect.signature(method)
  kinds = {parameter.kind for parameter in signature.parameters.values()}
  if inspect.Parameter.VAR_POSITIONAL in kinds:
    return {}
  try:
    bound = signature.bind(None, *args, **kwargs)
  except TypeError:
    return {}  # The call itself will explain what is wrong.
  return dict(list(bound.arguments.items())[1:])


def real(ids: jax.Array) -> jax.Array:
  """Which tokens are real, <bool>[batch, length]: T5X's convention.

  Args:
    ids: <int32>[batch, length]. Ids of T5, of which 0 is padding; for a decoder
      alone, whose id 0 may be any token, a mask.
  """
  return ids > 0


def in_batch(batch: Mapping[str, Any], stack: str) -> jax.Array:
  """Which tokens of a batch are real, <bool>[batch, length].

  Args:
    batch: Model features. Segment ids say it, where there are some.
    stack: 'encoder' or 'decoder'.
  """
  names = {'encoder': 'encoder_input_tokens',
           'decoder': 'decoder_target_tokens'}
  ids = batch.get(f'{stack}_segment_ids')
  return real(batch[names[stack]] if ids is None else ids)


def t5x_tokens(call: Call) -> Tokens:
  """Describes the tokens of models with T5X's signature.

  Those are models that are called with `encoder_input_tokens`,
  `decoder_target_tokens` and their `..._segment_ids`: see `real`. For a
  decoder alone `in_prompt` says which tokens are the prompt's, or, as in a
  prefix LM, `decoder_causal_attention`; without either, all of them are.

  Args:
    call: The call.

  Returns:
    The tokens; not `known` for other signatures.
  """
  arguments = call.arguments
  names = ('encoder_input_tokens', 'decoder_input_tokens')
  if not any(name in arguments for name in names):
    return Tokens(known=False)
  inputs = arguments.get('encoder_input_tokens')
  prompt_valid = None if inputs is None else real(inputs)
  prompt_ids = arguments.get('encoder_segment_ids')
  if call.reads_encoder:
    return Tokens(valid=prompt_valid, segment_ids=prompt_ids)
  targets = arguments.get('decoder_target_tokens')
  prompt = arguments.get('encoded')
  tokens = Tokens(
      prompt=prompt,
      prompt_valid=None if prompt is None else prompt_valid,
      prompt_segment_ids=None if prompt is None else prompt_ids,
  )
  if arguments.get('decode', False):
    # In one step of decoding the only token is real, even if its id is 0.
    return tokens.replace(cached=True)
  if targets is None:
    return tokens
  tokens = tokens.replace(
      valid=real(targets), segment_ids=arguments.get('decoder_segment_ids')
  )
  return tokens if inputs is not None else _with_prompt(tokens, arguments)


def _with_prompt(tokens: Tokens, arguments: Mapping[str, Any]) -> Tokens:
  """Adds which tokens of a decoder alone are the prompt's."""
  if arguments.get('prefill', False):
    # T5X leaves the last token of the prompt to the first step of decoding.
    positions = jnp.arange(tokens.valid.shape[1])
    in_prompt = positions < arguments['prefill_lengths'][:, None]
    return tokens.replace(in_prompt=in_prompt, cached=True)
  given = arguments.get('in_prompt')
  if given is None:
    given = arguments.get('decoder_causal_attention')
  if given is None:
    return tokens.replace(in_prompt=tokens.valid)
  return tokens.replace(in_prompt=real(given) & tokens.valid)


def with_example_ids(tokens: Tokens, given: jax.Array | None) -> Tokens:
  """Adds the ids that were given with the examples.

  Args:
    tokens: The tokens; their segment ids count the examples of a row from 1.
    given: <int32>[batch, n], 1 + the id of each example of a row in turn, and 0
      behind the last; None: no ids are given.
  """
  if given is None:
    return tokens
  ids, segments = given[:, :1], tokens.segment_ids
  if segments is not None:
    ids = jnp.take_along_axis(given, jnp.maximum(segments - 1, 0), axis=1)
    ids = jnp.where(segments > 0, ids, 0)
  return tokens.replace(example_ids=ids - 1)


def tokens_argument(
    call: Call, name: str = 'tokens', padding_id: int = 0
) -> Tokens:
  """Describes the tokens of a decoder by one argument with their ids.

  Args:
    call: The call.
    name: Name of the argument, <int32>[batch, length].
    padding_id: The id of padding.

  Raises:
    errors.UserError: If the model was called without that argument.
  """
  ids = call.arguments.get(name)
  if ids is None:
    raise errors.UserError(
        f'The model was called without an argument {name!r}; its arguments '
        f'are {", ".join(call.arguments) or "not named"}.',
        where='tokens.tokens_argument.name',
        remedy='Name the argument that holds the token ids.',
    )
  valid = jnp.asarray(ids) != padding_id
  in_prompt = _given_prompt(call)
  if in_prompt is not None:
    in_prompt &= valid
  return Tokens(valid=valid, in_prompt=in_prompt)


def all_real(call: Call) -> Tokens:
  """Describes the tokens of a model that never sees padding."""
  return Tokens(in_prompt=_given_prompt(call))


def _given_prompt(call: Call) -> jax.Array | None:
  """Which tokens are the prompt's, as `inject.AdaptedModule` was told."""
  given = call.arguments.get('in_prompt')
  return None if given is None else real(given)
