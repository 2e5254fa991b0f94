# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Routed experts in PyTorch, for exported models. Needs torch only.

Exported folders carry this file inside of theirs, so it imports nothing of
moe_peft. Arithmetic as in `moe_peft/core/routing.py` and `moe_peft/methods/`;
routers in float32.
"""

import torch
from torch import nn
import torch.nn.functional as F


class Experts(nn.Module):
  """The experts of one layer, and their router.

  Args:
    spec: What is computed.
      kind: 'low_rank' (LoRA, MoLoRA) or 'vector' ((IA)^3, MoV).
      num_experts, in_features, out_features: Sizes.
      rank, alpha, shared_a: Of low-rank experts; the last says that all
        have the same `lora_a` (HydraLoRA).
      residual, num_heads, site_input: Of vectors: whether missing weight
        counts as the identity; heads that are routed one by one; whether the
        layer's inputs are scaled instead of its outputs.
      router: None, or its options (score, selection, num_selected_experts,
        renormalise, max_threshold, balancing_bias, bias_in_gate).
  """

  def __init__(self, spec):
    super().__init__()
    self.spec = spec
    experts = spec['num_experts']
    if spec['kind'] == 'low_rank':
      num_a = 1 if spec['shared_a'] else experts
      self.lora_a = _zeros(num_a, spec['rank'], spec['in_features'])
      self.lora_b = _zeros(experts, spec['out_features'], spec['rank'])
      routed = spec['in_features']
    else:
      self.scaling = _zeros(experts, spec['out_features'])
      routed = spec['out_features'] // spec['num_heads']
    router = spec['router']
    if router is None:
      return
    if router['selection'] != 'uniform':
      self.router = _zeros(experts, routed)
    if router['selection'] == 'threshold':
      self.threshold_router = _zeros(1, routed)
      self.threshold_bias = _zeros(1)
    if router['balancing_bias']:
      self.router_bias = _zeros(experts)

  def reset_parameters(self):
    """Values with which training begins: the layer is as it was."""
    for name, parameter in self.named_parameters():
      if name in ('lora_a', 'router', 'threshold_router'):
        nn.init.normal_(parameter, std=2e-2)
      elif name == 'scaling':
        nn.init.ones_(parameter)
      else:
        nn.init.zeros_(parameter)

  def route(self, features):
    """Returns the experts' weights, float32 `[..., num_experts]`."""
    router, experts = self.spec['router'], self.spec['num_experts']
    if router['selection'] == 'uniform':
      shape = (*features.shape[:-1], experts)
      return features.new_full(shape, 1.0 / experts, dtype=torch.float32)
    features = features.float()
    logits = F.linear(features, self.router.float())
    if router['score'] == 'softmax':
      probs = logits.softmax(dim=-1)
    else:
      probs = logits.sigmoid()
    scores = probs
    if router['balancing_bias']:
      scores = probs + self.router_bias.float()
    weights = scores if router['bias_in_gate'] else probs
    if router['selection'] == 'top_k':
      chosen = scores.topk(router['num_selected_experts'], dim=-1).indices
      selected = torch.zeros_like(scores).scatter(-1, chosen, 1.0)
      # As in JAX: an expert whose weight is negative (a bias) is not used.
      weights = torch.where(weights > 0, weights * selected, 0.0)
    elif router['selection'] == 'threshold':
      threshold = F.linear(features, self.threshold_router.float())
      threshold = (threshold + self.threshold_bias.float()).sigmoid()
      weights = F.relu(probs - router['max_threshold'] * threshold)
    if router['renormalise']:
      weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-9)
    return weights

  def forward(self, inputs, outputs):
    """Returns the new outputs of the layer, `[..., out_features]`."""
    if self.spec['kind'] == 'low_rank':
      return outputs + self.update(inputs).to(outputs.dtype)
    return outputs * self.scale(outputs).to(outputs.dtype)

  def update(self, inputs):
    """Returns `sum_e weight_e B_e A_e x`, scaled by alpha / rank.

    The experts are combined at rank r: no `[..., num_experts, out_features]`.
    """
    num_a, rank, _ = self.lora_a.shape
    hidden = F.linear(inputs.to(self.lora_a.dtype), self.lora_a.flatten(0, 1))
    if self.spec['router'] is not None:
      weights = self.route(inputs).to(hidden.dtype)
      hidden = hidden.unflatten(-1, (num_a, rank)) * weights.unsqueeze(-1)
      hidden = hidden.flatten(-2)
    up = self.lora_b.transpose(0, 1).flatten(1)
    return F.linear(hidden, up) * (self.spec['alpha'] / rank)

  def scale(self, outputs):
    """Returns the factors `[..., out_features]`."""
    if self.spec['router'] is None:
      return self.scaling[0]
    heads = self.spec['num_heads']
    weights = self.route(outputs.unflatten(-1, (heads, -1)))
    vectors = self.scaling.unflatten(-1, (heads, -1))
    if self.spec['residual']:
      vectors = vectors - 1
    scale = torch.einsum(
        '...he,ehd->...hd', weights.to(vectors.dtype), vectors
    ).flatten(-2)
    return 1 + scale if self.spec['residual'] else scale


def _zeros(*shape):
  return nn.Parameter(torch.zeros(*shape))


def run_adapted(layer, experts, inputs, *args, **kwargs):
  """Runs a layer with its experts.

  Args:
    layer: Called with the inputs.
    experts: List of `Experts`, applied one after the other.
    inputs: `[..., in_features]`.
    *args: Passed on.
    **kwargs: Passed on.
  """
  changed = inputs
  for mixture in experts:
    if mixture.spec['site_input']:
      changed = mixture(changed, changed)
  outputs = layer(changed, *args, **kwargs)
  for mixture in experts:
    if not mixture.spec['site_input']:
      outputs = mixture(inputs, outputs)
  return outputs
