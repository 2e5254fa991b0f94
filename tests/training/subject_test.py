# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a plan is told of a run of the embedded engine."""

import jax

from moe_peft.core import trainable
from moe_peft.training import subject
from tests.training import tiny


def test_a_plan_sees_the_microbatch_and_the_state_of_what_trains(tmp_path):
  experiment = tiny.experiment(
      tmp_path, NUM_MICROBATCHES=2, NUM_EXPERT_PARTITIONS=4
  )
  planned = subject.of_experiment(experiment)
  assert planned.batch_size == 4 and planned.partitions == (4, 1)
  variables = jax.eval_shape(lambda: experiment.init(jax.random.key(0)))
  state = jax.eval_shape(lambda: planned.init_optimizer(variables))
  trained, _ = trainable.split(trainable.flatten(variables['params']))
  size = sum(x.size for x in jax.tree.leaves(state) if x.ndim)
  assert size == 2 * trainable.num_params(trained)  # Adam has two moments.
