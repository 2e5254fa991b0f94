# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The experts of a layer in torch, as exported folders carry them.

Exported folders hold this file inside of theirs, and need torch only.
Arithmetic as in `moe_peft/methods/`.
"""

import functools

import torch
from torch import nn
import torch.nn.functional as F

# Exported folders hold one file: the next lines give way to what they import.
from moe_peft.hf.expert_shapes import expert_shapes
from moe_peft.hf.torch_router import Context
from moe_peft.hf.torch_router import Routed

_FUNCTIONS = {
    'relu': F.relu,
    'silu': F.silu,
    'gelu': lambda x: F.gelu(x, approximate='tanh'),
    'linear': lambda x: x,
}


class Experts(Routed):
  """The experts of one layer, and their router.

  Args:
    spec: What is computed.
      kind: 'low_rank' (LoRA, MoLoRA), 'vector' ((IA)^3, MoV), 'bottleneck'
        (adapters, SMEAR) or 'block' (MixLoRA: copies of an MLP, on its last
        layer).
      num_experts, in_features, out_features: Sizes.
      rank, alpha, shared_a, always_on: Of low-rank experts; the third says
        that all have the same `lora_a` (HydraLoRA), the last is the rank of
        a pair, `shared_lora_a` and `shared_lora_b`, that every token uses.
      scaled: Of low-rank experts: whether outputs are scaled too (DoRA).
      residual, num_heads, site_input: Of vectors: whether missing weight
        counts as the identity; heads that are routed one by one; whether the
        layer's inputs are scaled instead of its outputs.
      activation, merged: Of bottlenecks: their function; whether parameters
        are averaged, once for a row (SMEAR).
      branches: Of blocks: the layers that the last one follows, each with
        its `name`, its `module` (a sibling), `function` and `rows` of that
        module's outputs.
      rows: The layer's outputs that are changed, [start, stop], where several
        layers of ours are one here; absent: all.
      router: None, or its options, see `Routed`.
  """

  def __init__(self, spec):
    super().__init__()
    self.spec, self.context, self.seen = spec, Context(), {}
    for name, shape in expert_shapes(spec).items():
      self.register_parameter(name, nn.Parameter(torch.zeros(*shape)))

  def reset_parameters(self):
    """Values with which training begins: the layer is as it was."""
    for name, parameter in self.named_parameters():
      if name.endswith(('lora_a', 'router', 'down')):
        nn.init.normal_(parameter, std=2e-2)
      elif name in ('scaling', 'router_scale'):
        nn.init.ones_(parameter)
      elif name == 'router_columns':
        nn.init.constant_(parameter, 1e-2)
      else:
        nn.init.zeros_(parameter)

  def forward(self, inputs, outputs):
    """Returns the new outputs of the layer, `[..., out_features]`."""
    rows = self.spec.get('rows')
    if rows is not None:
      start, stop = rows
      part = self.changed(inputs, outputs[..., start:stop])
      return torch.cat([outputs[..., :start], part, outputs[..., stop:]], -1)
    return self.changed(inputs, outputs)

  def changed(self, inputs, outputs):
    if self.spec['kind'] == 'low_rank':
      update = self.update(inputs)
      if self.spec.get('scaled'):
        products = outputs.to(update.dtype) * self.column_scale
        update = update + products + self.column_offset
      return outputs + update.to(outputs.dtype)
    if self.spec['kind'] == 'bottleneck':
      return outputs + self.bottleneck(outputs).to(outputs.dtype)
    return outputs * self.scale(outputs).to(outputs.dtype)

  def update(self, inputs):
    """Returns `sum_e weight_e B_e A_e x`, scaled by alpha / rank.

    The experts are combined at rank r: no `[..., num_experts, out_features]`.
    """
    num_a, rank, _ = self.lora_a.shape
    hidden = F.linear(inputs.to(self.lora_a.dtype), self.lora_a.flatten(0, 1))
    up = self.lora_b.transpose(0, 1)
    if self.spec['router'] is not None:
      weights = self.route(inputs).to(hidden.dtype)
      if self.spec['router'].get('units', 1) > 1:  # Each rank has its own.
        hidden = hidden.unsqueeze(-1) * weights
        up = up.transpose(1, 2)
      else:
        hidden = hidden.unflatten(-1, (num_a, rank)) * weights.unsqueeze(-1)
      hidden = hidden.flatten(-2)
    update = F.linear(hidden, up.flatten(1))
    if self.spec.get('always_on'):
      shared = F.linear(inputs.to(update.dtype), self.shared_lora_a[0])
      update = update + F.linear(shared, self.shared_lora_b[0])
    return update * (self.spec['alpha'] / rank)

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

  def bottleneck(self, outputs):
    """Returns what two-layer networks of the outputs add to them."""
    function, x = _FUNCTIONS[self.spec['activation']], outputs
    x = x.to(self.down.dtype)
    weights = x.new_ones(*x.shape[:2], 1)
    if self.spec['router'] is not None:
      weights = self.route(outputs).to(x.dtype)
    if self.spec['merged']:  # Parameters are averaged, not outputs.
      merged = lambda x, kernels: torch.einsum(
          'bli,eoi,ble->blo', x, kernels, weights
      )
      hidden = function(merged(x, self.down) + weights @ self.down_bias)
      return merged(hidden, self.up) + weights @ self.up_bias
    hidden = torch.einsum('bli,eri->bler', x, self.down) + self.down_bias
    hidden = function(hidden) * weights.unsqueeze(-1)
    update = torch.einsum('bler,eor->blo', hidden, self.up)
    return update + weights @ self.up_bias

  def block(self, layer, hidden):
    """Runs the last layer of an MLP of which each expert is a copy."""
    branches = self.spec['branches']
    names = [branch['name'] for branch in branches]
    functions = [_FUNCTIONS[branch['function']] for branch in branches]
    read, wrote = zip(*map(self.seen.pop, names), strict=True)
    x = read[0]
    product = lambda parts: functools.reduce(
        torch.mul, [f(part) for f, part in zip(functions, parts, strict=True)]
    )
    weights = x.new_ones(*x.shape[:2], 1)
    if self.spec['router'] is not None:
      weights = self.route(x).to(x.dtype)
    frozen, changed, update = product(wrote), hidden, 0.0
    for index, weight in enumerate(weights.split(1, dim=-1)):
      moved = [
          part + self.pair(name, index, x)
          for name, part in zip(names, wrote, strict=True)
      ]
      change = product(moved) - frozen
      changed = changed + weight * change
      update = update + weight * self.pair('wo', index, hidden + change)
    return layer(changed) + update

  def pair(self, name, index, x):
    """Returns what one expert adds to one layer of its block."""
    lora_a, lora_b = (
        getattr(self, f'{name}_{half}')[index].to(x.dtype)
        for half in ('lora_a', 'lora_b')
    )
    scale = self.spec['alpha'] / self.spec['rank']
    return F.linear(F.linear(x, lora_a), lora_b) * scale

  def watch(self, branch, module, args, output):
    """Runs after a branch of the MLP: keeps what it read and wrote."""
    start, stop = branch['rows'] or (0, None)
    self.seen[branch['name']] = args[0], output[..., start:stop]


class FusedExperts(nn.Module):
  """Several `Experts` on one layer, each on outputs of its own."""

  def __init__(self, spec):
    super().__init__()
    self.parts = nn.ModuleList(Experts(part) for part in spec['parts'])

  def reset_parameters(self):
    for part in self.parts:
      part.reset_parameters()


def make_experts(spec):
  """The module for a spec, which has `parts` where several share a layer."""
  return (FusedExperts if 'parts' in spec else Experts)(spec)


def connect(model):
  """Lets all experts of a model see what they read besides their layer."""
  context = Context()
  if not model.config.is_encoder_decoder:
    decoder = model.get_decoder()
    decoder.register_forward_pre_hook(context.read_alone, with_kwargs=True)
  for name, module in model.named_modules():
    leaf = name.rpartition('.')[2]
    if leaf == 'encoder':
      module.register_forward_pre_hook(context.read_encoder, with_kwargs=True)
    elif leaf == 'decoder':
      module.register_forward_pre_hook(context.read_decoder, with_kwargs=True)
    elif isinstance(module, Experts):
      module.context = context
      _watch_branches(model, name, module)


def _watch_branches(model, name, experts):
  """Hooks the siblings of the layer that has these experts, at `name`."""
  parents = name.split('.')
  for branch in experts.spec.get('branches', ()):
    owners = ('.'.join(parents[:n]) for n in range(len(parents) - 1, 0, -1))
    owner = next(
        x for x in map(model.get_submodule, owners)
        if hasattr(x, branch['module'])
    )
    hook = functools.partial(experts.watch, branch)
    getattr(owner, branch['module']).register_forward_hook(hook)


def run_adapted(layer, experts, inputs, *args, **kwargs):
  """Runs a layer with its experts.

  Args:
    layer: Called with the inputs.
    experts: List of modules of `make_experts`, applied one after the other.
    inputs: `[..., in_features]`.
    *args: Passed on.
    **kwargs: Passed on.
  """
  mixtures = [x for e in experts for x in getattr(e, 'parts', [e])]
  changed, run = inputs, layer
  for mixture in mixtures:
    if mixture.spec.get('site_input'):
      changed = mixture(changed, changed)
    elif mixture.spec['kind'] == 'block':
      run = functools.partial(mixture.block, run)
  outputs = run(changed, *args, **kwargs)
  for mixture in mixtures:
    if not (mixture.spec.get('site_input') or mixture.spec['kind'] == 'block'):
      outputs = mixture(inputs, outputs)
  return outputs
