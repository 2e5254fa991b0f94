# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What surely does not fit into memory is said before anything is made."""

import types

import jax
import jax.numpy as jnp
import pytest

from moe_peft.training import memory
from moe_peft.training import restored
from moe_peft.training import run
from tests.refusals import refused
from tests.training import tiny

FAR = 10**8  # Of it nothing here has room.


@pytest.fixture(autouse=True)
def _a_host_of_a_gibibyte(monkeypatch):
  monkeypatch.setattr(memory, 'of_host', lambda: 2**30)


@pytest.mark.parametrize(
    ('macro', 'value', 'where', 'names'),
    [
        ('NUM_EXPERTS', FAR, 'NUM_EXPERTS', ('49,600,000,000', 'SITES')),
        ('RANK', FAR, 'NUM_EXPERTS', (f'RANK = {FAR}', '1.0 GiB')),
        ('t5.T5Config.emb_dim', FAR, 'MODEL', ('BASE_DTYPE',)),
        # Parameters that fit, beside an optimizer's state that does not.
        ('NUM_EXPERTS', 400_000, 'NUM_EXPERTS', ('198,400,000', 'state')),
        ('BATCH_SIZE', FAR, 'BATCH_SIZE', (f'[{FAR}, ', 'FEATURE_LENGTHS')),
        ('EVAL_BATCH_SIZE', FAR, 'EVAL_BATCH_SIZE', (f'[{FAR}, ',)),
    ],
)  # fmt: skip
def test_sizes_far_beyond_memory(macro, value, where, names, tmp_path):
  tiny.load(tmp_path / 'run', **{macro: value})
  with refused(where, *names):
    run.run_experiment()
  assert not (tmp_path / 'run').exists()


def test_batches_of_evaluations_alone(tmp_path):
  """They are refused before the base or a checkpoint is read."""
  tiny.load(tmp_path, EVAL_BATCH_SIZE=FAR)
  with refused('EVAL_BATCH_SIZE', f'[{FAR}, '):
    restored.evaluate_run('validation')
  with refused(tmp_path / 'checkpoints'):  # Here nothing is scored.
    restored.restore(run.build())


def test_batches_of_evaluations_are_as_short_as_their_rows(tmp_path):
  """Of full length the MLP alone would take two GiB."""
  lengths = {'inputs': 2048, 'targets': 16}
  tiny.load(tmp_path, EVAL_BATCH_SIZE=8192, TASK_FEATURE_LENGTHS=lengths)
  run.experiment_lib.prepare(
      run.build(), checks=(run.train_step.check, run.scoring.check)
  )


def test_parts_of_a_batch_need_less(tmp_path, monkeypatch):
  """48 MiB of logits; in parts they fit, and so does what is no batch's."""
  monkeypatch.setattr(memory, 'of_host', lambda: 2**25)
  for parts in (1, 8):
    tiny.load(tmp_path, BATCH_SIZE=2048, NUM_MICROBATCHES=parts)
    if parts == 1:
      with refused('BATCH_SIZE'):
        run.experiment_lib.prepare(
            run.build(), checks=[run.train_step.check]
        )
    else:
      run.train_step.check(run.experiment_lib.lay_out(run.build()))


@pytest.mark.parametrize(
    ('spec', 'y', 'is_kept'), [('b,d->bd', (9,), False),
                               ('bc,cd->bd', (2, 9), True)],
)  # fmt: skip
def test_outer_products_are_not_kept(spec, y, is_kept):
  x = jax.ShapeDtypeStruct((2**28, 2)[: len(y)], jnp.float32)
  product = jax.make_jaxpr(lambda x, y: jnp.einsum(spec, x, y))(
      x, jax.ShapeDtypeStruct(y, jnp.float32)
  )
  check = lambda: memory.check_products(
      product.jaxpr, 2**28, 'BATCH_SIZE', jax.devices()
  )
  if is_kept:
    with refused('BATCH_SIZE', f'[{2**28}, 9]'):
      check()
  else:
    check()


def test_devices_that_say_nothing_are_not_the_host():
  card = lambda stats: types.SimpleNamespace(
      platform='gpu', memory_stats=lambda: stats
  )
  assert memory.of_devices([card({'bytes_limit': 5})] * 2) == 10
  assert memory.of_devices([card(None)]) == memory.of_devices([card({})])
  assert memory.of_devices([card(None)]) > 2**60
  assert memory.of_devices(jax.devices()) == 2**30


def test_a_quantized_base_takes_its_bytes_and_has_its_parameters(tmp_path):
  tiny.load(tmp_path, BASE_DTYPE='float32')
  whole = run.experiment_lib.lay_out(run.build())
  tiny.load(tmp_path, BASE_DTYPE='nf4')
  small = run.experiment_lib.lay_out(run.build())
  assert memory.num_bytes(small.frozen) < memory.num_bytes(whole.frozen)
  count = memory.trainable.num_params(whole.frozen)
  with refused('MODEL', f'{count:,} do not'):
    memory.check_state({}, small.frozen, None, [types.SimpleNamespace(
        platform='gpu', memory_stats=lambda: {'bytes_limit': 1}
    )])


def test_rows_of_tens_of_thousands_are_refused_in_seconds(tmp_path):
  """Nothing of [length, length] is made on the way."""
  lengths = {'inputs': 32_768, 'targets': 32_768}
  tiny.load(tmp_path / 'run', TASK_FEATURE_LENGTHS=lengths)
  with refused('TASK_FEATURE_LENGTHS', '[2, 32768, 32768]'):
    run.run_experiment()
  assert not (tmp_path / 'run').exists()


def test_keys_have_sizes():
  assert memory.num_bytes([jax.random.key(0), jnp.zeros(2, jnp.int8)]) == 10


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
  monkeypatch.undo()
  meminfo = tmp_path / 'meminfo'
  of_host = lambda: memory.of_host(tmp_path, meminfo)
  everything = of_host()
  (tmp_path / 'memory.max').write_text('max\n')
  assert of_host() == everything > 2**20
  (tmp_path / 'memory.max').write_text('1048576\n')
  assert of_host() == 2**20
  meminfo.write_text('MemTotal:  99 kB\nSwapTotal:      1024 kB\n')
  assert of_host() == 2**21
