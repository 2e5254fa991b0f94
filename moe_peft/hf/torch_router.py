# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Who uses which expert, in torch, as exported folders carry it.

Exported folders hold this file inside of theirs, so it imports nothing of
moe_peft. Arithmetic as in `moe_peft/core/routing.py` and `moe_peft/methods/`,
in float32.
"""

import torch
from torch import nn
import torch.nn.functional as F


class Context:
  """What experts read besides their layer: the encoder, padding, the prompt.

  Attributes:
    encoded: Outputs of the encoder, `[batch, length, features]`; None without
      one.
    mask: 1 for real tokens of the encoder, or of a decoder that has none,
      `[batch, length]`; None: all are.
    answers: Whether a decoder alone goes on after what it has cached.
  """

  encoded = mask = None
  answers = False

  def read_alone(self, module, args, kwargs):
    """Runs before a decoder without an encoder."""
    self.mask = kwargs.get('attention_mask')
    cache = kwargs.get('past_key_values', kwargs.get('cache'))
    self.answers = cache is not None and cache.get_seq_length() > 0

  def read_encoder(self, module, args, kwargs):
    """Runs before the encoder."""
    self.mask = kwargs.get('attention_mask')

  def read_decoder(self, module, args, kwargs):
    """Runs before the decoder."""
    self.encoded = kwargs.get('encoder_hidden_states')
    self.mask = kwargs.get('encoder_attention_mask')

  def weights(self, features):
    """The mask as float32 `[batch, length, 1]`."""
    if self.mask is None:
      return features.new_ones(*features.shape[:2], 1, dtype=torch.float32)
    if getattr(self.mask, 'ndim', 0) != 2:
      raise ValueError('these experts need an attention mask [batch, length]')
    return (self.mask > 0).float().unsqueeze(-1)


class Routed(nn.Module):
  """A module with a router, as its `spec['router']` says.

  The router's options are score, selection, num_selected_experts, renormalise,
  max_threshold, balancing_bias, bias_in_gate; units, the distributions that a
  token gets (each rank its own); sequence, 'inputs' or 'prompt', a mean of
  which routes whole rows; normed (SMEAR's scores); features, where they are not
  the layer's; capacity_factor and expert_capacity; gate, the weight of whoever
  is selected; magnitude, whether scores count by their size; mass,
  entropy_threshold and q (DynMoLE's selection); lambda_units (LD-MoLE's). Of a
  bank: experts, 'arrow' or 'spectr', which read `lora_a`, with their
  temperature; gates (PHATGOOSE's); centroids (of retrieval), with theirs.
  """

  def route(self, features):
    """Returns the experts' weights, float32 `[..., num_experts]`."""
    router, experts = self.spec['router'], self.spec['num_experts']
    if router['selection'] == 'uniform':
      shape = (*features.shape[:-1], experts)
      return features.new_full(shape, 1.0 / experts, dtype=torch.float32)
    features = features.float()
    logits = self.logits(features)
    probs = {
        'softmax': lambda: logits.softmax(dim=-1),
        'sigmoid': logits.sigmoid,
        'logits': lambda: logits,
    }[router['score']]()
    scores = probs
    if router['balancing_bias']:
      scores = probs + self.router_bias.float()
    if router.get('magnitude'):
      scores = scores.abs()
    weights = scores if router['bias_in_gate'] else probs
    if router['selection'] == 'top_k':
      chosen = scores.topk(router['num_selected_experts'], dim=-1).indices
      selected = torch.zeros_like(scores).scatter(-1, chosen, 1.0)
      # As in JAX: an expert whose weight is negative (a bias) is not used.
      weights = torch.where(weights > 0, weights * selected, 0.0)
      if router.get('gate'):
        # Logits may be zero or negative; without probability nobody is used.
        there = probs > 0 if router['score'] == 'softmax' else 1.0
        weights = selected * there * router['gate']
    elif router['selection'] == 'mass':
      weights = weights * self.holding_mass(probs)
    elif router['selection'] == 'sparsegen':
      weights = self.sparsegen(logits, features)
    elif router['selection'] == 'threshold':
      threshold = F.linear(features, self.threshold_router.float())
      threshold = (threshold + self.threshold_bias.float()).sigmoid()
      weights = F.relu(probs - router['max_threshold'] * threshold)
    if router['renormalise']:
      weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-9)
    if router['selection'] == 'experts_choose':
      weights = weights * self.chosen(probs)
    return weights

  def logits(self, features):
    """Returns the router's logits, float32 `[..., num_experts]`."""
    router = self.spec['router']
    if router.get('experts'):
      return self.of_experts(features) / router['temperature']
    kernel = self.router.float()
    if router.get('gates'):
      logits = F.linear(_normed(features, 1e-5), _normed(kernel, 1e-5))
      logits = logits / features.shape[-1] ** 0.5
      return torch.where(kernel.abs().amax(1) > 0, logits, -1e9)
    source = router.get('sequence')
    if source is None:
      logits = F.linear(features, kernel)
      units = router.get('units', 1)
      return logits if units == 1 else logits.unflatten(-1, (units, -1))
    length = features.shape[1]
    if source == 'prompt' and self.context.encoded is not None:
      features = self.context.encoded.float()
    if router.get('centroids'):
      means = F.normalize(self.mean(features), dim=-1)
      cosines = F.linear(means, F.normalize(kernel, dim=-1))
      cosines = (cosines / router['temperature']).expand(-1, length, -1)
      return torch.where(kernel.abs().amax(1) > 0, cosines, -1e9)
    if not router.get('normed'):
      means = self.mean(F.linear(features, kernel))
      return means.expand(-1, length, -1)
    columns = _normed(kernel) * self.router_columns.float()
    features = _normed(self.mean(features)) * self.router_scale.float()
    logits = F.linear(features, columns) + self.router_bias.float()
    return logits.expand(-1, length, -1)

  def holding_mass(self, probs):
    """1 for the fewest experts that hold a share of the probability; all for
    tokens whose Tsallis entropy is high."""
    router, q = self.spec['router'], self.spec['router']['q']
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    place = torch.arange(probs.shape[-1], device=probs.device)
    ahead = ordered.cumsum(dim=-1) - ordered
    few = (ahead < router['mass']) | (place < router['num_selected_experts'])
    few = torch.zeros_like(probs).scatter(-1, order, few.float())
    entropy = (1 - probs.clamp(min=1e-20).pow(q).sum(-1, True)) / (q - 1)
    return torch.where(entropy > router['entropy_threshold'], 1.0, few)

  def sparsegen(self, logits, features):
    """The projection on the simplex; each token says how sparse it is."""
    inner = F.relu(features @ self.lambda_kernel.float() + self.lambda_bias)
    value = inner @ self.lambda_out.float() + self.lambda_offset.float()
    room = 0.01 - F.logsigmoid(value)
    ordered = logits.sort(dim=-1, descending=True).values
    sums = ordered.cumsum(dim=-1)
    place = 1 + torch.arange(logits.shape[-1], device=logits.device)
    count = (room + place * ordered > sums).sum(-1, True)
    threshold = (sums.gather(-1, count - 1) - room) / count
    return F.relu(logits - threshold) / room

  def mean(self, x):
    """The mean of a row, `[batch, 1, n]`.

    In a decoder alone, of the prompt up to each token, `[batch, length, n]`.
    What comes after the first call with a cache is the answer, and has the mean
    of the whole prompt.
    """
    context = self.context
    prompt = self.spec['router']['sequence'] == 'prompt'
    if not prompt or context.encoded is not None:
      weights = context.weights(x)
      return (x * weights).sum(1, True) / weights.sum(1, True).clamp(1)
    if not context.answers:
      weights = context.weights(x)
      means = (x * weights).cumsum(1) / weights.cumsum(1).clamp(1)
      self.seen['prompt'] = means[:, -1:].detach()
      return means
    return self.seen['prompt'].expand(-1, x.shape[1], -1)

  def of_experts(self, features):
    """How far each expert's arrays reach, float32 `[..., num_experts]`."""
    kernel = self.lora_a.float()
    if self.spec['router']['experts'] == 'arrow':
      first = kernel[:, 0]
      size = first.norm(dim=-1, keepdim=True)
      reach = F.linear(features, first / size.clamp(min=1e-30)).abs()
    else:
      hidden = F.linear(features, kernel.flatten(0, 1))
      reach = hidden.unflatten(-1, kernel.shape[:2]).norm(dim=-1)
    # An expert that is not there: minus infinity, as softmax takes it.
    return torch.where(kernel.abs().amax((1, 2)) > 0, reach, -1e9)

  def chosen(self, probs):
    """1 where an expert takes a token of its row, as many as it has slots."""
    router, (_, length, experts) = self.spec['router'], probs.shape
    slots = router['expert_capacity'] or max(
        1, round(router['capacity_factor'] * length / experts)
    )
    real = self.context.weights(probs)
    scores = torch.where(real > 0, probs, -1.0)
    order = scores.argsort(dim=1, descending=True, stable=True)
    return (order.argsort(dim=1) < slots) * real


def _normed(x, epsilon=1e-6):
  """`x` with mean 0 and variance 1 along the last axis."""
  x = x - x.mean(dim=-1, keepdim=True)
  return x * (x.square().mean(dim=-1, keepdim=True) + epsilon).rsqrt()
