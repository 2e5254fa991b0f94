# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The embedded engine is for one process; T5X is for several."""

from collections.abc import Mapping
import os

import jax

from moe_peft import errors

# What srun and mpirun tell each of the processes that they start.
_PROCESSES = ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE', 'PMI_SIZE')
# What a slice of TPUs tells each of its hosts.
_HOSTS = 'TPU_WORKER_HOSTNAMES'


def check_one_process(environment: Mapping[str, str] = os.environ) -> None:
  """Refuses to be one process of several, which would all train the same.

  Args:
    environment: Variables, in which launchers and slices say how many
      processes they have started, each on its own host or device.

  Raises:
    errors.UserError: There are several.
  """
  counts = {name: environment.get(name, '1') for name in _PROCESSES}
  counts[_HOSTS] = str(environment.get(_HOSTS, '').count(',') + 1)
  counts['jax.process_count()'] = str(jax.process_count())
  for where, count in counts.items():
    if count.isdecimal() and int(count) > 1:
      raise errors.UserError(
          f'moe_peft.train is for one process, and there are {count}.',
          where=where,
          remedy='On several hosts train with python -m t5x.train; '
          'docs/t5x.md says how.',
      )
