# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""How JAX runs in the tests; set before it starts.

Eight host devices for the sharding tests. Programs are compiled quickly rather
than well, and kept between runs: compilation is most of the time of the tests.
What JAX remembers is dropped when a worker grows towards 2 GB.
"""

import ctypes
import gc
import os
from pathlib import Path
import sys

import psutil
import pytest

from moe_peft import signals

_CACHE = Path(__file__).parents[1] / '.pytest_cache' / 'jax'
_FLAGS = (
    '--xla_force_host_platform_device_count=8',
    '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true',
    '--xla_cpu_use_fusion_emitters=false',  # A fifth of a small run's time.
    # Programs are so small that dividing them takes longer than compiling.
    '--xla_cpu_parallel_codegen_split_count=1',
    '--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE',
)

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_CACHE))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '0')
os.environ['XLA_FLAGS'] = ' '.join(
    (os.environ.get('XLA_FLAGS', ''), *_FLAGS)
).strip()

# Collections go through all that JAX and TensorFlow hold: by default they take
# a tenth of a small run's time and more.
gc.set_threshold(100_000, 20, 5)

_WORKER_BYTES = 2 << 30


def pytest_collection_finish():
  gc.freeze()  # What libraries hold by now stays: collections leave it out.


def pytest_xdist_auto_num_workers() -> int:
  """As many workers as there are cores, and as fit into the free memory."""
  cores = len(psutil.Process().cpu_affinity())
  fit = psutil.virtual_memory().available // (_WORKER_BYTES * 5 // 4)
  return max(1, min(cores, fit))


@pytest.fixture(scope='session')
def _cleared_at():
  """Bytes of the worker when it was last cleared, in a list of one."""
  return [0]


@pytest.fixture(scope='module', autouse=True)
def _bounded_memory(_cleared_at):
  """Drops compiled programs once a worker has grown; disk still has them.

  Clearing takes up to a second, and what comes after it is compiled again.
  Libraries do not give back what they hold, so a worker that is as large as
  clearing left it is not cleared again.
  """
  yield
  if 'jax' not in sys.modules:
    return
  size = psutil.Process().memory_info().rss
  if size < max(_WORKER_BYTES * 3 // 4, _cleared_at[0] + _WORKER_BYTES // 16):
    return
  sys.modules['jax'].clear_caches()
  gc.collect()
  gc.freeze()  # What libraries were loaded since.
  if sys.platform == 'linux':
    ctypes.CDLL(None).malloc_trim(0)  # Gives freed memory back to the system.
  _cleared_at[0] = psutil.Process().memory_info().rss


@pytest.fixture(scope='module', autouse=True)
def _one_mlir_context():
  """The programs of a module are written in one context of MLIR.

  JAX makes one for each program, and keeps it. Most programs here are of one
  operation: the context is a quarter of their time, and nearly all of the 2 MB
  that each takes.
  """
  if 'jax' not in sys.modules:
    yield
    return
  from jax._src.interpreters import mlir

  if not hasattr(mlir, 'make_ir_context'):  # JAX's own, which may change.
    yield
    return
  context = mlir.make_ir_context()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mlir, 'make_ir_context', lambda: context)
    yield


@pytest.fixture
def one_device(monkeypatch):
  """Processes that a test starts have one device, as a user's have."""
  import jax

  jax.devices()  # Of this process all stay.
  flags = os.environ['XLA_FLAGS'].split()
  monkeypatch.setenv(
      'XLA_FLAGS', ' '.join(x for x in flags if 'device_count' not in x)
  )


@pytest.fixture(autouse=True)
def _own_signals():
  """Command lines that run in this process leave its Ctrl-C as it is."""
  with signals.kept():
    yield
