# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Routers turn tokens into weights over experts.

One class, orthogonal options: score -> gate dropout -> selection ->
renormalisation -> capacity. Arithmetic is float32 throughout ("selective
precision", Switch, arXiv 2101.03961). The methods' names for these steps are
in papers: MoV and MoLoRA (2309.05444), SiRA (2311.09179), AdaMoLE (2405.00361),
SMoRA (2501.15103), expert choice (2202.09368).
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
from flax import struct
from flax.linen import partitioning
import jax
import jax.numpy as jnp

from moe_peft import errors
from moe_peft.core import capacity as capacity_lib
from moe_peft.core import losses
from moe_peft.core import low_rank
from moe_peft.core import router_options
from moe_peft.core import selection


@struct.dataclass
class Tokens:
  """What is known of the tokens at a site, besides their features.

  Attributes:
    valid: <bool>[batch, length], False for padding; None: all are real.
    segment_ids: <int32>[batch, length] of packed examples, or None.
    embedding: <float>[batch, features], an external embedding, or None.
    prompt: <float>[batch, prompt_length, features], the encoder's outputs, at
      the sites of a decoder; None elsewhere.
    prompt_valid: <bool>[batch, prompt_length], or None.
    prompt_segment_ids: <int32>[batch, prompt_length], or None.
    step: <int32>[], the training step, or None.
  """

  valid: jax.Array | None = None
  segment_ids: jax.Array | None = None
  embedding: jax.Array | None = None
  prompt: jax.Array | None = None
  prompt_valid: jax.Array | None = None
  prompt_segment_ids: jax.Array | None = None
  step: jax.Array | None = None


@struct.dataclass
class Routing:
  """What a router decides. With `unit = 'head'`, length is length * heads.

  Attributes:
    combine_weights: <float32>[batch, length, num_experts], the weight of each
      expert in each token's output; 0 where the expert is not used.
    router_probs: <float32>[batch, length, num_experts].
    router_logits: <float32>[batch, length, num_experts].
    valid: <bool>[batch, length].
    metrics: Scalars to be sown in `intermediates`; none where it is immutable.
    product: <float>[batch, length, n], products with the rows `beside`.
    num_selected: Most experts that a token uses.
    group_size: Tokens of a capacity group.
    expert_capacity: Most tokens of a group that an expert takes.
  """

  combine_weights: jax.Array
  router_probs: jax.Array
  router_logits: jax.Array
  valid: jax.Array
  metrics: Mapping[str, jax.Array]
  product: jax.Array | None = None
  num_selected: int = struct.field(pytree_node=False, default=1)
  group_size: int = struct.field(pytree_node=False, default=1)
  expert_capacity: int = struct.field(pytree_node=False, default=1)


class Router(nn.Module):
  """Decides which experts a token uses, and with which weights.

  Attributes:
    num_experts: Number of experts.
    in_axis: Logical name of the features it reads.
    num_heads: Heads in the features it reads (1 if the layer has none); None
      if they are not the outputs of a layer, and cannot be routed by head.
    causal: Whether later tokens must not matter.
    score: 'softmax' over experts, or 'sigmoid' of each logit.
    selection: 'all' (soft), 'top_k', 'threshold' (AdaMoLE: the score exceeds
      `max_threshold * sigmoid(w x + b)`, learned per token; the excess is the
      weight), 'random' (experts drawn while training, equal weights at
      evaluation), 'expert_choice' (each expert takes its best tokens; needs
      `capacity`, encoders only).
    num_selected_experts: k of 'top_k' and 'random'.
    renormalise: Divides the weights of the selected experts by their sum. The
      released code of MoV and MoLoRA does not.
    gate_dropout: Rate of dropout on the scores before selection, with the
      usual scaling of what is left (SiRA's expert dropout).
    unit: What is routed: each 'token'; each 'head' of each token, with one
      kernel for all heads; each 'sequence' (mean logits of its real tokens; in
      a decoder those of the encoder's outputs); each example by an external
      'embedding'; the whole 'batch' (for 'random' only).
    jitter: Multiplies inputs by U(1 - jitter, 1 + jitter) while training.
    capacity: Limit of tokens per expert, or None.
    max_threshold: AdaMoLE's tau_max, by default 1 / num_experts, for which at
      least one expert is always used.
    balancing_bias: Adds a bias to the scores, for the selection only, that
      moves against the load without any loss; see
      `selection.balance_by_gradient`.
    bias_in_gate: The bias also enters the weights (SMoRA's released code).
    load_balance: 'switch' or 'sira', the form of `auxiliary_loss`.
    frozen: The kernel keeps its initial value (SMoE-Dropout).
    kernel_stddev: Standard deviation of the initial kernel.
  """

  num_experts: int
  in_axis: str = 'embed'
  num_heads: int | None = None
  causal: bool = True
  score: str = 'softmax'
  selection: str = 'all'
  num_selected_experts: int | None = None
  renormalise: bool = False
  gate_dropout: float = 0.0
  unit: str = 'token'
  jitter: float = 0.0
  capacity: capacity_lib.Capacity | None = None
  max_threshold: float | None = None
  balancing_bias: bool = False
  bias_in_gate: bool = False
  load_balance: str = 'switch'
  frozen: bool = False
  kernel_stddev: float = 2e-2

  @nn.compact
  def __call__(
      self,
      inputs: jax.Array,
      tokens: Tokens | None = None,
      beside: jax.Array | None = None,
      active: jax.Array | None = None,
  ) -> Routing:
    """Routes.

    Args:
      inputs: <float>[batch, length, features].
      tokens: Padding, packing and prompt; None: only real tokens.
      beside: <float>[n, features], rows to be multiplied with the inputs in
        the same matmul as the router's kernel, or None. One matmul of the two
        is faster than two (the experts' lora_a is such a matrix).
      active: <bool>[num_experts], False for experts that do not exist at this
        layer, or None.

    Returns:
      The routing; `product` is `low_rank.project(inputs, beside)`.
    """
    router_options.check(self)
    tokens = Tokens() if tokens is None else tokens
    training = self.has_rng('dropout')
    units = self.units_per_token()
    batch, length = inputs.shape[0], inputs.shape[1] * units
    spread = lambda x: None if x is None else jnp.repeat(x, units, axis=1)
    valid, segment_ids = spread(tokens.valid), spread(tokens.segment_ids)
    if valid is None:
      valid = jnp.ones((batch, length), bool)

    logits, threshold, product = self.score_tokens(inputs, tokens, beside)
    logits = jnp.broadcast_to(logits, (batch, length, self.num_experts))
    if active is not None:
      logits = jnp.where(active, logits, -1e9)
    probs = (
        jax.nn.softmax(logits)
        if self.score == 'softmax'
        else jax.nn.sigmoid(logits)
    )
    if training and self.gate_dropout:
      whole = (1,) if self.unit in ('sequence', 'embedding') else ()
      probs = nn.Dropout(
          self.gate_dropout, broadcast_dims=whole, deterministic=False
      )(probs)
    scores, bias = probs, None
    if self.balancing_bias:
      bias = partitioning.param_with_axes(
          'bias', nn.initializers.zeros, (self.num_experts,), jnp.float32,
          axes=('unmodeled',), module=self,
      )
      scores = probs + jax.lax.stop_gradient(bias)
    if active is not None:  # Whatever its bias.
      scores = jnp.where(active, scores, -1e9)
    group = self._group(batch, length, units, training)
    gates, selected = self._select(
        probs, scores, threshold, valid, segment_ids, group, training, tokens
    )
    load = gates if selected is None else selected.astype(jnp.float32)
    if bias is not None:
      mean_load = losses.mean_over(load, valid)
      gates = selection.balance_by_gradient(gates, bias, mean_load)
    if selected is not None:
      gates, selected = self._limit(
          gates, selected & valid[..., None], scores, segment_ids, group
      )
    metrics = {}
    if self.is_mutable_collection('intermediates'):  # Not in evaluation.
      metrics = selection.metrics(
          self, probs, logits, gates, load, valid, group
      )
    return Routing(
        combine_weights=gates,
        router_probs=probs,
        router_logits=logits,
        valid=valid,
        metrics=metrics,
        product=product,
        num_selected=self._most_selected(),
        group_size=group[1],
        expert_capacity=group[2] or group[1],
    )

  @nn.nowrap
  def units_per_token(self) -> int:
    """Returns how many distributions over experts a token gets."""
    return self.num_heads if self.unit == 'head' else 1

  @nn.nowrap
  def score_tokens(
      self, inputs: jax.Array, tokens: Tokens, beside: jax.Array | None
  ) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """Returns (logits, threshold, product), see `__call__`.

    Routers that look at something else override this. The logits have the
    shape [batch, length * units_per_token, num_experts], or one that can be
    broadcast to it.
    """
    features = inputs.reshape(
        inputs.shape[0], inputs.shape[1] * self.units_per_token(), -1
    )
    product, source, axis = None, features, self.in_axis
    if self.unit == 'head' and self.num_heads > 1:
      axis = 'kv'
    if self.selection == 'random':  # No parameters: nothing to look at.
      logits = jnp.zeros((1, 1, self.num_experts), jnp.float32)
      product = None if beside is None else low_rank.project(features, beside)
      return logits, None, product
    if self.unit == 'embedding':
      source, axis = _given_embedding(tokens)[:, None], 'unmodeled'
    elif self.unit == 'sequence' and self.causal:
      source, axis = given_prompt(tokens), 'embed'
    own = source is features and not (self.jitter and self.has_rng('dropout'))
    if self.jitter and self.has_rng('dropout'):
      source = source * jax.random.uniform(
          self.make_rng('dropout'), source.shape, source.dtype,
          1.0 - self.jitter, 1.0 + self.jitter,
      )
    kernel = low_rank.rows(self._kernel(source.shape[-1], axis))
    if beside is not None and own and features.dtype == beside.dtype == (
        jnp.float32
    ):
      product = low_rank.project(features, jnp.concatenate([beside, kernel]))
      product, logits = jnp.split(product, [beside.shape[0]], axis=-1)
    else:
      logits = low_rank.project(source.astype(jnp.float32), kernel)
      if beside is not None:
        product = low_rank.project(features, beside)
    threshold = None
    if self.selection == 'threshold':
      logits, threshold = logits[..., :-1], logits[..., -1:]
      offset = partitioning.param_with_axes(
          'threshold_bias', nn.initializers.zeros, (1,), jnp.float32,
          axes=('unmodeled',), module=self,
      )
      most = self.max_threshold or 1.0 / self.num_experts
      threshold = most * jax.nn.sigmoid(threshold + offset)
    if self.unit == 'sequence':
      logits = pool(logits, tokens, self.causal)
    return logits, threshold, product

  @nn.nowrap
  def _kernel(self, in_features: int, axis: str) -> jax.Array:
    """Returns <float32>[in_features, num_experts (+ 1 for the threshold)]."""
    init = nn.initializers.normal(stddev=self.kernel_stddev)
    make = lambda name, columns: partitioning.param_with_axes(
        name, init, (in_features, columns), jnp.float32,
        axes=(axis, 'unmodeled'), module=self,
    )
    kernel = make('kernel', self.num_experts)
    if self.selection == 'threshold':
      kernel = jnp.concatenate([kernel, make('threshold_kernel', 1)], axis=1)
    return jax.lax.stop_gradient(kernel) if self.frozen else kernel

  @nn.nowrap
  def num_selected(self, tokens: Tokens) -> Any:
    """Returns k, a number or a traced scalar; schedules override it."""
    del tokens
    return self.num_selected_experts

  @nn.nowrap
  def _most_selected(self) -> int:
    if self.selection in ('top_k', 'random'):
      return self.num_selected_experts
    return self.num_experts

  @nn.nowrap
  def _group(self, batch, length, units, training):
    """Returns (num_groups, group_size, expert_capacity, row_length)."""
    # One step of decoding has one token a row: a limit would mean nothing.
    limited = self.capacity is not None and length > units
    if self.selection != 'expert_choice':
      limited = limited and (training or self.capacity.at_evaluation)
    if not limited:
      return batch, length, None, length
    size = self.capacity.group_size
    size = size and size * units
    groups, size = capacity_lib.group_shape(size, batch, length)
    limit = self.capacity.limit(size, self.num_experts, self._most_selected())
    return groups, size, limit, length

  @nn.nowrap
  def _select(
      self, probs, scores, threshold, valid, segment_ids, group, training,
      tokens,
  ):
    """Returns (gates, selected); `selected` is None if all experts are used."""
    gates = scores if self.bias_in_gate else probs
    if self.selection == 'all' or (
        self.selection == 'expert_choice' and group[2] is None
    ):
      selected = None
    elif self.selection == 'top_k':
      selected = selection.select_top_k(scores, self.num_selected(tokens))
    elif self.selection == 'threshold':
      gates = jax.nn.relu(probs - threshold)
      selected = gates > 0
    elif self.selection == 'random':
      shape = (1, 1) if self.unit == 'batch' else probs.shape[:2]
      k = self.num_selected_experts
      # At evaluation those that are there count equally.
      there = probs > 0
      gates = there / there.sum(axis=-1, keepdims=True)
      selected = None
      if training:
        gates = jnp.full_like(probs, 1.0 / k)
        noise = jax.random.uniform(
            self.make_rng('dropout'), shape + (self.num_experts,)
        )
        selected = selection.select_top_k(noise, k)
        selected = jnp.broadcast_to(selected, probs.shape)
    else:  # Expert choice: all want in, the surest win.
      selected = jnp.ones(probs.shape, bool)
    if selected is not None:
      # A dropped or inactive expert takes no slot.
      selected &= gates > 0
      gates = jnp.where(selected, gates, 0.0)
    if self.renormalise:
      gates /= gates.sum(axis=-1, keepdims=True) + 1e-9
    return gates, selected

  @nn.nowrap
  def _limit(self, gates, selected, scores, segment_ids, group):
    """Applies padding and capacity; returns (gates, selected)."""
    groups, size, limit, row = group
    if limit is not None:
      grouped = lambda x: x.reshape(groups, size, *x.shape[2:])
      choice = self.selection == 'expert_choice'
      kept = capacity_lib.within_capacity(
          grouped(selected),
          grouped(scores),
          None if segment_ids is None else grouped(segment_ids),
          row,
          limit,
          'probability' if choice else self.capacity.priority,
      )
      selected = kept.reshape(selected.shape)
    return jnp.where(selected, gates, 0.0), selected


def _given_embedding(tokens: Tokens) -> jax.Array:
  if tokens.embedding is None:
    raise errors.UserError(
        "routing.Router.unit = 'embedding' needs an embedding of each example: "
        'call the model with inputs_embedding=<float>[batch, features], or use '
        "unit = 'sequence'."
    )
  if tokens.segment_ids is not None:
    raise errors.UserError(
        "routing.Router.unit = 'embedding' has one embedding a row, but the "
        'rows are packed. Switch packing off (PACK = False).'
    )
  return tokens.embedding


def given_prompt(tokens: Tokens) -> jax.Array:
  if tokens.prompt is None:
    raise errors.UserError(
        "routing.Router.unit = 'sequence' in a decoder reads the encoder's "
        'outputs, and this model has none. A mean over the decoder itself '
        "would see later tokens. Use unit = 'token', or restrict SITES to "
        'encoder layers.'
    )
  return tokens.prompt


def pool(
    features: jax.Array, tokens: Tokens, from_prompt: bool
) -> jax.Array:
  """Mean of the packed example, or row, that each token belongs to.

  The mean of the logits is the logit of the mean token, and smaller.

  Args:
    features: <float32>[batch, source_length, n], of the prompt or of the
      tokens themselves.
    tokens: Padding and packing.
    from_prompt: Whether the features are the prompt's.

  Returns:
    <float32>[batch, length, n] if the rows are packed, else [batch, 1, n].
  """
  if from_prompt:
    source_valid, source_ids = tokens.prompt_valid, tokens.prompt_segment_ids
  else:
    source_valid, source_ids = tokens.valid, tokens.segment_ids
  if source_valid is None:
    source_valid = jnp.ones(features.shape[:2], bool)
  weights = source_valid[:, None].astype(jnp.float32)
  if tokens.segment_ids is not None and source_ids is not None:
    weights *= tokens.segment_ids[:, :, None] == source_ids[:, None]
  pooled = weights @ features.astype(jnp.float32)
  return pooled / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1.0)
