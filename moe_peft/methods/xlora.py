# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""X-LoRA (arXiv 2402.07148): the model reads a text twice, to choose its LoRAs.

  hidden = the last hidden states of the model without adapters
  weights = top_k(softmax(classifier(hidden) / temperature))
  outputs + alpha / rank * sum_e weight_e * (inputs @ lora_a[e]) @ lora_b[e]

over a bank of frozen LoRAs; the classifier is all that learns. It is one for
the model: its outputs are the weights at all layers, or, `layerwise`, each
layer has a last matrix of its own. From PEFT's code are the depth 1, hidden
layers of 2,048 with ReLU and dropout 0.2, the temperature 1, one set of weights
for all layers, and top-k without normalization. PEFT's `global_scaling_weight`
is a factor of ALPHA here. Ours: the initial values; in an encoder-decoder each
stack has the weights of its own hidden states, by the same classifier; no first
pass with experts (`scaling_pass_value`).

Hidden states of a decoder know no later token, and the first pass has a cache
of its own, so decoding step by step gives what one pass gives. It costs a
second forward pass, and in an encoder-decoder the bare encoder for every token
that is generated.
"""

import dataclasses
import functools

from flax import linen as nn
from flax.linen import partitioning
import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft.core import inject
from moe_peft.core import low_rank
from moe_peft.core import scores
from moe_peft.core import sites


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierScores(scores.TokenScores):
  """Logits of the classifier, divided by a temperature.

  Attributes:
    layerwise: Whether the layer has the classifier's last matrix.
    temperature: Divides the logits.
  """

  layerwise: bool = False
  temperature: float = 1.0

  def check(self, router):
    scores.check_temperature(self.temperature)

  def rows(self, router, features):
    return None

  def logits(self, router, inputs, tokens, product):
    read = tokens.first_pass
    if read is None:
      raise errors.UserError(
          'X-LoRA reads hidden states of a pass before this one, and the stack '
          'of this layer has none.', where='HIDDEN_STATES',
          remedy='Name the norm behind the last layer of each stack that SITES '
          'names.',
      )
    if self.layerwise:
      read = _linear(router, read, router.num_experts)
    return read / self.temperature


class _Adapter(nn.Module):
  """The scope of what is of the whole model: `adapter/router/...`."""

  router: nn.Module

  def __call__(self, hidden):
    return self.router(hidden)


class Classifier(nn.Module):
  """The classifier, or what of it all layers share.

  Attributes:
    num_outputs: Outputs of the last matrix; None for none.
    depth: Number of matrices, with the last one.
    width: Outputs of the others.
    dropout: Rate of dropout behind each of them.
  """

  num_outputs: int | None
  depth: int
  width: int
  dropout: float

  @nn.compact
  def __call__(self, hidden: jax.Array) -> jax.Array:
    """Maps <float>[batch, length, features] to <float32>[batch, length, n]."""
    x = hidden.astype(jnp.float32)
    for index in range(self.depth - 1):
      x = nn.relu(_Linear(self.width, name=f'hidden_{index}')(x))
      if self.dropout and self.has_rng('dropout'):
        x = nn.Dropout(self.dropout, deterministic=False)(x)
    if self.num_outputs is None:
      return x
    return _linear(self, x, self.num_outputs)


def scopes(depth: int) -> list[str]:
  """Paths of the matrices of a classifier, each a kernel and a bias."""
  top = f'{sites.ADAPTER_SCOPE}/router'
  return [*(f'{top}/hidden_{index}' for index in range(depth - 1)), top]


class _Linear(nn.Module):
  """A matrix with a bias, in float32."""

  features: int

  @nn.compact
  def __call__(self, x):
    return _linear(self, x, self.features)


def _linear(module: nn.Module, x: jax.Array, features: int) -> jax.Array:
  """Returns `x @ kernel + bias`, of parameters in the scope of the module."""
  make = functools.partial(
      partitioning.param_with_axes, dtype=jnp.float32, module=module
  )
  kernel = make(
      'kernel', scores.KERNEL_INIT, (x.shape[-1], features),
      axes=(None, 'unmodeled'),
  )
  bias = make(
      'bias', nn.initializers.zeros, (features,), axes=('unmodeled',)
  )
  return low_rank.project(x, low_rank.rows(kernel)) + bias


@dataclasses.dataclass(frozen=True)
class TwoPasses(inject.OutputRule):
  """Gives the sites what the classifier makes of a first pass.

  Attributes, beside those of `inject.OutputRule`:
    hidden_states: Regular expression of the modules whose outputs are the last
      hidden states.
    layerwise: As of `ClassifierScores`.
    depth: Matrices of the classifier.
    width: Outputs of all but the last one.
    dropout: Rate of dropout behind all but the last one.
    settings: Name of the gin file of a bank whose classifier needs it, set by
      that for other methods; then this model is refused.
  """

  hidden_states: str = r'(.*/)?(encoder|decoder)_norm'
  layerwise: bool = False
  depth: int = 1
  width: int = 2048
  dropout: float = 0.2
  settings: str | None = None

  def before_call(self, model, first):
    """As `inject.OutputRule`: logits, or if `layerwise` what they are made of.

    Raises:
      errors.UserError: If another rule has a classifier too, if
        `hidden_states` does not name one module of each stack, and if the
        settings of the classifier were not given.
    """
    if self.settings is not None:
      raise errors.UserError(
          'This bank has a classifier, and bank.gin is for methods without it.',
          where='bank.gin',
          remedy=f'Give {self.settings} of the same folder in its place; or '
          'build a bank of the experts alone, each with --from.',
      )
    num_experts = self.adapter_factory(site=sites.Site(), name=None).num_experts
    if num_experts == 1:  # Nothing is chosen.
      return {}
    if sum(isinstance(rule, TwoPasses) for rule in model.rules) > 1:
      raise errors.UserError(
          'Two rules have a classifier of X-LoRA, and a model has one.',
          where='ADAPTER_RULES', remedy='Name all layers in one SITES.',
      )
    classifier = Classifier(
        None if self.layerwise else num_experts, self.depth, self.width,
        self.dropout, parent=None,
    )
    classify = _Adapter(classifier, name=sites.ADAPTER_SCOPE)
    read = first.hidden_states(self.hidden_states)
    return {stack: classify(hidden) for stack, hidden in read.items()}
