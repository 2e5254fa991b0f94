# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A model with experts for `trust_remote_code`: torch and transformers.

Exported folders end this file with the family that they have.
"""

import re

from torch import nn

# Exported folders hold one file: the next lines give way to what they import.
from moe_peft.hf.torch_experts import connect
from moe_peft.hf.torch_experts import make_experts
from moe_peft.hf.torch_experts import run_adapted


class AdaptedLinear(nn.Linear):
  """A dense layer with experts; its own weight keeps its name."""

  def __init__(self, layer, spec):
    nn.Module.__init__(self)
    self.in_features, self.out_features = layer.in_features, layer.out_features
    self.weight, self.bias = layer.weight, layer.bias
    self.experts = make_experts(spec)

  def forward(self, inputs):
    return run_adapted(super().forward, [self.experts], inputs)


class AdaptedActivation(nn.Module):
  """An activation function with experts."""

  def __init__(self, layer, spec):
    super().__init__()
    self.layer = layer
    self.experts = make_experts(spec)

  def forward(self, inputs):
    return run_adapted(self.layer, [self.experts], inputs)


def with_experts(base):
  """Makes the classes of a family with experts.

  Args:
    base: A model class of transformers, such as `LlamaForCausalLM`.

  Returns:
    Its configuration with `moe_peft_groups`, as in `adapter_config.json`, and
    the model with experts on the modules that these groups name.
  """

  class MoePeftConfig(base.config_class):
    model_type = 'moe_peft'
    moe_peft_groups: list | None = None

  class MoePeftModel(base):
    config_class = MoePeftConfig

    def __init__(self, config):
      super().__init__(config)
      for name, layer in list(self.named_modules()):
        for spec in config.moe_peft_groups or ():
          if re.fullmatch(spec['modules'], name):
            dense = isinstance(layer, nn.Linear)
            wrap = AdaptedLinear if dense else AdaptedActivation
            parent, _, leaf = name.rpartition('.')
            setattr(self.get_submodule(parent), leaf, wrap(layer, spec))
      connect(self)
      self.post_init()

  return MoePeftConfig, MoePeftModel
