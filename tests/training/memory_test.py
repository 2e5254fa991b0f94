# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What surely does not fit into memory is said before anything is made."""

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
    restored.restore(run.build())


def test_parts_of_a_batch_need_less(tmp_path, monkeypatch):
  """48 MiB of logits; in parts they fit, and so does what is no batch's."""
  monkeypatch.setattr(memory, 'of_host', lambda: 2**25)
  for parts in (1, 8):
    tiny.load(tmp_path, BATCH_SIZE=2048, NUM_MICROBATCHES=parts)
    if parts == 1:
      with refused('BATCH_SIZE'):
        run.experiment_lib.prepare(run.build(), check=run.train_step.check)
    else:
      run.train_step.check(run.experiment_lib.lay_out(run.build()))


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
  monkeypatch.undo()
  everything = memory.of_host(tmp_path)
  (tmp_path / 'memory.max').write_text('max\n')
  assert memory.of_host(tmp_path) == everything > 2**20
  (tmp_path / 'memory.max').write_text('1048576\n')
  assert memory.of_host(tmp_path) == 2**20
