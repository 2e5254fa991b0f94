# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""PyTorch peers, run in an environment of their own (see peers.py).

A script and not a module: its environment holds the unrelated package
`moe-peft` of TUDB-Labs, whose import name is ours too. It imports nothing from
this repository. One process runs one case:

    stdin   {"case": "layer/loramoe", "threads": 1, "device": "cpu", ...sizes}
    stdout  {"parameters": 92160}
    stdin   run
    stdout  {"seconds": 0.12, "peak_mib": 310.0}
    ...

`peak_mib` is the growth of the process since everything was imported; on a GPU,
what PyTorch has taken of its memory.
"""

import functools
import importlib
import json
import os
import resource
import sys
import tempfile
import time

os.environ['MOE_PEFT_EXECUTOR_TYPE'] = 'CPU'
os.environ.setdefault('TRANSFORMERS_OFFLINE', '1')

# Every dense layer; of T5 all but wi_1, as in gin/methods/lora.gin.
LLAMA_SITES = [
    'q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'
]
T5_SITES = ['q', 'k', 'v', 'o', 'wi_0', 'wo']


def layer_case(make, sizes):
  """Forward and backward of one layer: parameters, inputs.

  Args:
    make: `make(frozen_layer, sizes)` returns a function of inputs and the
      trainable parameters.
    sizes: `features`, `tokens`, `num_experts`, `rank`.

  Returns:
    (step, number of trainable parameters).
  """
  import torch

  features, tokens = sizes['features'], sizes['tokens']
  rows = max(tokens // 256, 1)
  inputs = torch.randn(rows, tokens // rows, features, requires_grad=True)
  cotangent = torch.randn(rows, tokens // rows, features)
  frozen = torch.nn.Linear(features, features, bias=False)
  frozen.requires_grad_(False)
  function, params = make(frozen, sizes)

  def step():
    torch.autograd.grad(function(inputs), [*params, inputs], cotangent)

  return step, sum(p.numel() for p in params)


def matmul(sizes):
  """The frozen layer's product alone, without gradients."""
  import torch

  inputs = torch.randn(sizes['tokens'], sizes['features'])
  kernel = torch.randn(sizes['features'], sizes['features'])
  return lambda: inputs @ kernel, 0


def make_frozen(frozen, sizes):
  return frozen, []


def make_peft_lora(frozen, sizes):
  """Hugging Face PEFT's LoRA of rank E*r."""
  import peft
  import torch

  config = peft.LoraConfig(
      r=sizes['num_experts'] * sizes['rank'], target_modules=['0'],
      init_lora_weights=False,
  )
  model = peft.get_peft_model(torch.nn.Sequential(frozen), config)
  return model, [p for p in model.parameters() if p.requires_grad]


def make_loramoe(frozen, sizes):
  """MoE-PEFT's LoRAMoE: soft routing."""
  from moe_peft.adapters.loramoe import LoraMoeConfig
  from moe_peft.adapters.loramoe.model import LoraMoe

  return _moe_peft_layer(frozen, sizes, LoraMoeConfig, LoraMoe)


def make_mola(frozen, sizes):
  """MoE-PEFT's MoLA: two experts selected."""
  from moe_peft.adapters.mola import MolaConfig
  from moe_peft.adapters.mola.model import MolaSparseMoe

  return _moe_peft_layer(frozen, sizes, MolaConfig, MolaSparseMoe)


def _moe_peft_layer(frozen, sizes, config_class, layer_class):
  import torch

  from moe_peft.common.lora_linear import Linear

  layer = Linear(frozen, 'cpu')
  config = config_class.from_config({
      'name': 'a',
      'adapter_name': 'a',
      'task_name': 'casual',
      'r': sizes['rank'],
      'lora_alpha': 16,
      'lora_dropout': 0.05,  # It must not be zero; switched off below.
      'target_modules': ['q_proj'],
      'num_experts': sizes['num_experts'],
  })
  config.adapter_name = 'a'
  mixture = layer_class(frozen.in_features, torch.device('cpu'), config)
  layer.moes_['a'] = mixture
  for expert in range(sizes['num_experts']):
    layer.init_lora_weight(config.expert_config(expert))
  params = list(mixture.gate_.parameters())
  for expert in layer.loras_.values():
    expert.eval()
    params += [p for p in expert.parameters() if p.requires_grad]
  for p in params:
    torch.nn.init.normal_(p, std=0.02)

  def run(inputs):
    return mixture.forward(
        residual=frozen(inputs), hidden_states=inputs, lora_linear=layer
    )

  return run, params


def t5_peft_lora(sizes):
  """A training step of T5 1.1 with Hugging Face PEFT's LoRA."""
  import peft
  import torch
  import transformers

  model = transformers.T5ForConditionalGeneration(
      transformers.T5Config(
          vocab_size=sizes['vocab_size'],
          d_model=sizes['emb_dim'],
          d_kv=sizes['head_dim'],
          d_ff=sizes['mlp_dim'],
          num_layers=sizes['num_encoder_layers'],
          num_decoder_layers=sizes['num_decoder_layers'],
          num_heads=sizes['num_heads'],
          dropout_rate=0.0,
          feed_forward_proj='gated-gelu',
          tie_word_embeddings=False,
          decoder_start_token_id=0,
      )
  )
  config = peft.LoraConfig(
      r=sizes['rank'], target_modules=T5_SITES, init_lora_weights=False
  )
  model = peft.get_peft_model(model, config)
  inputs = torch.randint(1, sizes['vocab_size'], sizes['inputs'])
  targets = torch.randint(1, sizes['vocab_size'], sizes['targets'])
  return _training_step(
      [p for p in model.parameters() if p.requires_grad],
      lambda: model(input_ids=inputs, labels=targets).loss,
  )


def llama(sizes):
  """A LLaMA of transformers with random parameters, and a batch."""
  import torch
  import transformers

  model = transformers.LlamaForCausalLM(
      transformers.LlamaConfig(
          vocab_size=sizes['vocab_size'],
          hidden_size=sizes['emb_dim'],
          intermediate_size=sizes['mlp_dim'],
          num_hidden_layers=sizes['num_layers'],
          num_attention_heads=sizes['num_heads'],
          max_position_embeddings=sizes['tokens'][1],
      )
  )
  tokens = torch.randint(1, sizes['vocab_size'], sizes['tokens'])
  return model, tokens


def llama_peft_lora(sizes):
  """A training step of a LLaMA with Hugging Face PEFT's LoRA."""
  import peft

  model, tokens = llama(sizes)
  config = peft.LoraConfig(
      r=sizes['lora_rank'], target_modules=LLAMA_SITES, init_lora_weights=False
  )
  model = peft.get_peft_model(model, config)
  return _training_step(
      [p for p in model.parameters() if p.requires_grad],
      lambda: model(input_ids=tokens, labels=tokens).loss,
  )


def llama_loramoe(sizes):
  """A training step of a LLaMA with MoE-PEFT's LoRAMoE.

  Mixtures are in its MLPs; on the attention it puts plain LoRA of rank r, whose
  fused path draws a dropout mask whatever the mode of its modules.
  """
  import torch

  import moe_peft

  base, tokens = llama(sizes)
  with tempfile.TemporaryDirectory() as folder:
    base.save_pretrained(folder)
    model = moe_peft.LLMModel.from_pretrained(
        folder, device='cpu', load_dtype=torch.float32
    )
  del base
  model.init_adapter(
      moe_peft.adapter_factory(
          peft_type='LORAMOE',
          adapter_name='a',
          r=sizes['rank'],
          lora_alpha=16,
          lora_dropout=1e-9,  # It must not be zero; switched off below.
          target_modules=LLAMA_SITES,
          num_experts=sizes['num_experts'],
          routing_strategy='loramoe',
      )
  )
  params = list(model.get_adapter_weight_dict('a').values())
  for p in params:
    p.requires_grad_(True)
  # Experts lie in plain dictionaries, which `model.eval()` does not reach.
  for layer in model.model_.layers_:
    for linears in layer.state_dict():
      for linear in linears.values():
        for expert in linear.loras_.values():
          expert.eval()
  rows = tokens.tolist()

  def loss():
    # As its trainer does: lists in, one output per adapter.
    output = model.forward(
        moe_peft.common.LLMModelInput(
            batch_configs_=[moe_peft.common.LLMBatchConfig('a', 0, len(rows))],
            batch_tokens_=rows,
            batch_labels_=rows,
            batch_masks_=[[1] * len(row) for row in rows],
        )
    )[0]
    return output.loss if output.aux_loss is None else (
        output.loss + output.aux_loss
    )

  return _training_step(params, loss)


def _training_step(params, loss):
  """One step of AdamW; returns (step, number of parameters)."""
  import torch

  optimizer = torch.optim.AdamW(params, lr=1e-3, weight_decay=0.0)

  def step():
    optimizer.zero_grad()
    value = loss()
    value.backward()
    optimizer.step()
    return value.item()

  return step, sum(p.numel() for p in params)


# PEFT takes the first one for imported, as later releases of transformers do.
PEFT = ('torch.distributed.tensor', 'transformers', 'peft')
MOE_PEFT = ('moe_peft',)
# How a case is built, and what is imported before memory is counted.
CASES = {
    'layer/matmul': (matmul, ()),
    'layer/frozen': (functools.partial(layer_case, make_frozen), ()),
    'layer/peft_lora': (functools.partial(layer_case, make_peft_lora), PEFT),
    'layer/loramoe': (functools.partial(layer_case, make_loramoe), MOE_PEFT),
    'layer/mola': (functools.partial(layer_case, make_mola), MOE_PEFT),
    't5/peft_lora': (t5_peft_lora, PEFT),
    'llama/peft_lora': (llama_peft_lora, PEFT),
    'llama/loramoe': (llama_loramoe, MOE_PEFT),
}


def use(device):
  """Puts what is made from now on on a device.

  Args:
    device: As PyTorch names it.

  Returns:
    (a function that waits for the device, one that returns its peak memory in
    MiB, of CPUs the process's).
  """
  import torch

  torch.set_default_device(device)
  if device == 'cpu':
    return lambda: None, lambda: (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    )
  # As XLA's are by default.
  torch.set_float32_matmul_precision('high')
  return torch.cuda.synchronize, lambda: (
      torch.cuda.max_memory_allocated() / 2**20
  )


def main():
  # Whatever the packages print must not get between the answers.
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  request = json.loads(sys.stdin.readline())
  make, modules = CASES[request.pop('case')]
  import torch

  for module in modules:
    importlib.import_module(module)

  torch.set_num_threads(request.pop('threads'))
  torch.manual_seed(0)
  wait, peak_mib = use(request.pop('device'))
  before = peak_mib()
  step, parameters = make(request)

  def answer(**values):
    print(json.dumps(values), file=answers, flush=True)

  answer(parameters=parameters)
  for _ in sys.stdin:
    step()  # Untimed: see timing.interleave.
    wait()
    start = time.perf_counter()
    step()
    wait()
    answer(
        seconds=time.perf_counter() - start, peak_mib=peak_mib() - before
    )


if __name__ == '__main__':
  main()
