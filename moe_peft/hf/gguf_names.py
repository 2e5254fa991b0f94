# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""Names and layouts of tensors in GGUF files, as llama.cpp converts them."""

import re

# Families that llama.cpp converts as LLaMA: rotary pairs are neighbors.
NEIGHBORS = ('llama', 'granite', 'smollm3')
# Names that all families share.
_TENSORS = {
    'token_embd': 'model.embed_tokens',
    'output_norm': 'model.norm',
    'output': 'lm_head',
}
_LAYER_TENSORS = {
    'attn_q': 'self_attn.q_proj',
    'attn_k': 'self_attn.k_proj',
    'attn_v': 'self_attn.v_proj',
    'attn_output': 'self_attn.o_proj',
    'attn_q_norm': 'self_attn.q_norm',
    'attn_k_norm': 'self_attn.k_norm',
    'attn_norm': 'input_layernorm',
    'ffn_gate': 'mlp.gate_proj',
    'ffn_up': 'mlp.up_proj',
    'ffn_down': 'mlp.down_proj',
    'ffn_norm': 'post_attention_layernorm',
}
# Gemma 2 and 3 norm both sides of a branch, OLMo 2 what comes out of it.
_SANDWICH = {
    'post_attention_norm': 'post_attention_layernorm',
    'ffn_norm': 'pre_feedforward_layernorm',
    'post_ffw_norm': 'post_feedforward_layernorm',
}
_JOINED = {'attn_qkv': 'self_attn.qkv_proj', 'ffn_up': 'mlp.gate_up_proj'}
_LAYER_TENSORS_OF = {
    **dict.fromkeys(('gemma2', 'gemma3', 'olmo2'), _SANDWICH), 'phi3': _JOINED
}
# Tensors that divide the frequencies of RoPE, one number a pair. LLaMA 3 has
# one of them, Phi has two: for short rows and for long ones.
ROPE_FACTORS = tuple(
    f'{x}.weight'
    for x in ('rope_freqs', 'rope_factors_short', 'rope_factors_long')
)


def hf_name(name: str, architecture: str) -> str:
  """Hugging Face name; of unknown tensors the name itself."""
  known = {**_LAYER_TENSORS, **_LAYER_TENSORS_OF.get(architecture, {})}
  match = re.fullmatch(r'blk\.(\d+)\.(\w+)\.(weight|bias)', name)
  if match and match[2] in known:
    return f'model.layers.{match[1]}.{known[match[2]]}.{match[3]}'
  stem = name.removesuffix('.weight')
  return f'{_TENSORS[stem]}.weight' if stem in _TENSORS else name
