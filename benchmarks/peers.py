# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""PyTorch peers in processes of their own, timed in turn with ours."""

from collections.abc import Mapping
import contextlib
from pathlib import Path
from typing import Any

import jax

from benchmarks import processes
from benchmarks import tables
from moe_peft import errors

HOW_TO_INSTALL = """\
PyTorch peers were left out. To see them, make an environment of their own
(their package `moe-peft` has our import name) and name its interpreter:
  python -m venv peers && peers/bin/pip install torch==2.13.0
  peers/bin/pip install transformers==4.46.3 peft==0.21.2 datasets evaluate \\
    accelerate sentencepiece scikit-learn tiktoken
  peers/bin/pip install --no-deps moe-peft==2.0.2
  python -m benchmarks --peer_python peers/bin/python"""
PYTORCH = 'PyTorch: '  # Begins the names of their cases.
ONLY_ON_CPUS = ('layer/loramoe', 'layer/mola', 'llama/loramoe')
ON_GPUS = (
    "MoE-PEFT's cases are left out: torch_peers runs them on CPUs alone."
)


class Peer(processes.Process):
  """One case of torch_peers; calling it times one call."""

  remedy = HOW_TO_INSTALL

  def __init__(
      self, python: str, case: str, sizes: Mapping[str, Any], **kwargs: Any
  ):
    """Starts the process and builds the case.

    Args:
      python: Interpreter of the peers' environment.
      case: Key of `torch_peers.CASES`.
      sizes: What the case needs, `threads` and `device` included.
      **kwargs: As in `processes.Process`.

    Raises:
      errors.UserError: If the interpreter does not run it.
    """
    # Isolated, so that PYTHONPATH does not lead it to this repository.
    command = [python, '-I', str(Path(__file__).with_name('torch_peers'))]
    try:
      super().__init__(command, {'case': case, **sizes}, **kwargs)
    except OSError as error:
      raise errors.UserError(
          f'{python} cannot be run ({error.strerror}).', '--peer_python'
      ) from error


def start(
    options: tables.Options,
    cases: Mapping[str, tuple[str, Mapping[str, Any]]],
    stack: contextlib.ExitStack,
) -> dict[str, Peer]:
  """Starts peers that end with the stack; none without an interpreter.

  Args:
    options: Options of the command line.
    cases: By name in the table: (key of `torch_peers.CASES`, sizes).
    stack: Closes them.
  """
  started = {}
  if options.peer_python is None:
    return started
  device = 'cuda' if jax.default_backend() == 'gpu' else 'cpu'
  for name, (case, sizes) in cases.items():
    if device == 'cuda' and case in ONLY_ON_CPUS:
      continue
    sizes = {'threads': options.threads, 'device': device, **sizes}
    started[name] = Peer(options.peer_python, case, sizes)
    stack.callback(started[name].close)
  return started


def facts(peers: Mapping[str, Peer]) -> dict[str, dict[str, float]]:
  """By name: `parameters` and `process_mib`."""
  return {
      name: {**peer.facts, 'process_mib': peer.peak_mib}
      for name, peer in peers.items()
  }


def notes(options: tables.Options) -> tuple[str, ...]:
  """Notes of a table with peers.

  Args:
    options: Options of the command line.

  Returns:
    How to install them, or which of them cannot take part, if any.
  """
  if not options.peer_python:
    return (HOW_TO_INSTALL,)
  return (ON_GPUS,) if jax.default_backend() == 'gpu' else ()
