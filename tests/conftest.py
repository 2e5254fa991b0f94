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
_LIBC = ctypes.CDLL(None) if sys.platform == 'linux' else None
if _LIBC:
  # Otherwise threads, of which JAX and TensorFlow have dozens, take memory from
  # arenas of their own, and what is free in one is of no use to another.
  _LIBC.mallopt(-8, 1)  # M_ARENA_MAX


def pytest_collection_finish():
  gc.freeze()  # What libraries hold by now stays: collections leave it out.


def pytest_xdist_auto_num_workers() -> int:
  """As many workers as there are cores, and as fit into the free memory."""
  cores = len(psutil.Process().cpu_affinity())
  fit = psutil.virtual_memory().available // (_WORKER_BYTES * 5 // 4)
  return max(1, min(cores, fit))


@pytest.fixture(scope='session')
def _left_at():
  """Bytes of the worker when memory was last given back, and last cleared."""
  return {'trimmed': 0, 'cleared': 0}


@pytest.fixture(autouse=True)
def _bounded_memory(_left_at):
  """Drops compiled programs once a worker has grown; disk still has them.

  Freed memory goes back to the system first, which is quick. Clearing takes up
  to a second, and what comes after it is compiled again. Libraries do not give
  back what they hold, so a worker that is as large as clearing left it is not
  cleared again.
  """
  yield
  limit = max(_WORKER_BYTES * 3 // 4, _left_at['trimmed'] + _WORKER_BYTES // 64)
  if 'jax' not in sys.modules or _size() < limit:
    return
  _left_at['trimmed'] = _trimmed_size()
  limit = max(_WORKER_BYTES * 3 // 4, _left_at['cleared'] + _WORKER_BYTES // 24)
  if _left_at['trimmed'] < limit:
    return
  sys.modules['jax'].clear_caches()
  gc.collect()
  gc.freeze()  # What libraries were loaded since.
  _left_at['trimmed'] = _left_at['cleared'] = _trimmed_size()


def _size() -> int:
  return psutil.Process().memory_info().rss


def _trimmed_size() -> int:
  """Gives freed memory back to the system; bytes of the worker after it."""
  if _LIBC:
    _LIBC.malloc_trim(0)
  return _size()


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
