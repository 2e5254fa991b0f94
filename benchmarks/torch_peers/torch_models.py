# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A whole network in PyTorch: its training step."""

import tempfile

# Every dense layer; of T5 all but wi_1, as in gin/methods/lora.gin.
LLAMA_SITES = [
    'q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'
]
T5_SITES = ['q', 'k', 'v', 'o', 'wi_0', 'wo']


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
          num_key_value_heads=sizes.get('num_kv_heads'),
          max_position_embeddings=sizes['tokens'][1],
          attn_implementation='sdpa',
      )
  )
  tokens = torch.randint(1, sizes['vocab_size'], sizes['tokens'])
  return model, tokens


def llama_frozen(sizes):
  """Forward pass and input gradients of a LLaMA, as floor.py has them."""
  import torch

  model, tokens = llama(sizes)
  model.requires_grad_(False)
  embedding = model.get_input_embeddings().weight.requires_grad_()

  def step():
    loss = model(input_ids=tokens, labels=tokens).loss
    return torch.autograd.grad(loss, embedding)

  return step, 0


def llama_peft_lora(sizes):
  """A training step of a LLaMA with Hugging Face PEFT's LoRA."""
  import peft

  model, tokens = llama(sizes)
  config = peft.LoraConfig(
      r=sizes['lora_rank'], target_modules=LLAMA_SITES, init_lora_weights=False
  )
  model = peft.get_peft_model(model, config)
  if sizes.get('compile'):
    model.compile()
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
