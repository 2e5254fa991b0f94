# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""PyTorch peers, run in an environment of their own (see peers.py).

A folder that is run and no package: its environment holds the unrelated package
`moe-peft` of TUDB-Labs, whose import name is ours too. It imports nothing else
from this repository. One process runs one case:

    stdin   {"case": "layer/loramoe", "threads": 1, "device": "cpu", ...sizes}
    stdout  {"parameters": 92160, "libraries": "torch 2.13.0"}
    stdin   run
    stdout  {"seconds": 0.12, "peak_mib": 310.0}
    ...

`dtype` is that of frozen parameters and of products, with adapters in float32:
`bfloat16` is what transformers' trainer does with `bf16=True`.

`peak_mib` is the growth of the process since everything was imported; on a GPU,
what PyTorch has taken of its memory.
"""

import importlib
import json
import os
import resource
import sys
import time

import torch_layers
import torch_models

os.environ['MOE_PEFT_EXECUTOR_TYPE'] = 'CPU'
os.environ.setdefault('TRANSFORMERS_OFFLINE', '1')

# PEFT takes the first one for imported, as later releases of transformers do.
PEFT = ('torch.distributed.tensor', 'transformers', 'peft')
MOE_PEFT = ('moe_peft',)
# How a case is built, and what is imported before memory is counted.
CASES = {
    'layer/matmul': (torch_layers.matmul, ()),
    'layer/frozen': (torch_layers.frozen, ()),
    'layer/peft_lora': (torch_layers.peft_lora, PEFT),
    'layer/loramoe': (torch_layers.loramoe, MOE_PEFT),
    'layer/mola': (torch_layers.mola, MOE_PEFT),
    't5/peft_lora': (torch_models.t5_peft_lora, PEFT),
    'llama/frozen': (torch_models.llama_frozen, PEFT),
    'llama/peft_lora': (torch_models.llama_peft_lora, PEFT),
    'llama/loramoe': (torch_models.llama_loramoe, MOE_PEFT),
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


def libraries():
  """Names and versions of what is imported."""
  names = [x for x in ('torch', 'transformers', 'peft') if x in sys.modules]
  return ', '.join(f'{x} {sys.modules[x].__version__}' for x in names)


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
  device = request.pop('device')
  wait, peak_mib = use(device)
  dtype = getattr(torch, request.pop('dtype', 'float32'))
  torch.set_default_dtype(dtype)
  before = peak_mib()
  run, parameters = make(request)

  def step():
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
      run()

  def answer(**values):
    print(json.dumps(values), file=answers, flush=True)

  answer(parameters=parameters, libraries=libraries())
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
