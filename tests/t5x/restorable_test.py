# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What T5X may begin with: a base, a run that goes on, what is evaluated."""

import gin
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from tests import refusals

pytest.importorskip('t5x')
restorable = pytest.importorskip('moe_peft.t5x.restorable')
pytestmark = pytest.mark.t5x


def state_of(rank=2, moment='mu', layer='layers_0', adapters=True):
  """T5X's state dictionary of one layer with a LoRA."""
  target = {'mlp': {'kernel': jnp.ones((4, 4))}}
  if adapters:
    target['mlp']['adapter'] = {'lora_a': jnp.ones((4, rank))}
  return {
      'target': {'decoder': {layer: target}},
      'state': {
          'step': jnp.asarray(4),
          'param_states': {moment: {'lora_a': jnp.ones((4, rank))}},
      },
  }


def write(folder, state, adapters_alone=False):
  with ocp.PyTreeCheckpointer() as writer:
    writer.save(folder / 'state', state)
  if adapters_alone:
    (folder / 'base').mkdir()


@pytest.fixture(name='folders')
def _folders(tmp_path):
  """A base, checkpoints of runs, and what is none."""
  write(tmp_path / 'base/checkpoint_0', state_of(adapters=False))
  write(tmp_path / 'whole/checkpoint_4', state_of())
  write(tmp_path / 'alone/checkpoint_4', state_of(), adapters_alone=True)
  (tmp_path / 'old/checkpoint_7').mkdir(parents=True)
  (tmp_path / 'old/checkpoint_7/checkpoint').touch()
  (tmp_path / 'hf').mkdir()
  (tmp_path / 'new').mkdir()
  (tmp_path / 'embedded').mkdir()
  (tmp_path / 'embedded/train.lock').touch()
  return tmp_path


def check(folders, state, **macros):
  """Checks it; values of macros that are paths lie in `folders`."""
  gin.clear_config()
  gin.parse_config("FRESH_REGEX = 'state/.*|target/.*/adapter/.*'")
  for name, value in macros.items():
    value = str(folders / value) if isinstance(value, str) else value
    gin.parse_config(f'{name} = {value!r}')
  if 'CHECKPOINT_PATH' in macros:
    gin.parse_config(
        'from __gin__ import dynamic_registration\nfrom t5x import utils\n'
        "utils.RestoreCheckpointConfig.mode = 'specific'"
    )
  restorable.check(jax.eval_shape(lambda: state))


NEW = {'MODEL_DIR': 'new', 'TRAIN_STEPS': 8}
WHOLE = {'MODEL_DIR': 'whole', 'TRAIN_STEPS': 8}


@pytest.mark.parametrize(
    ('state', 'macros', 'where', 'names'),
    [
        # Orbax would read as much of the arrays as fits.
        (state_of(rank=1), WHOLE, 'MODEL_DIR', ('(4, 2)', '(4, 1)', 'RANK')),
        (state_of(rank=3), WHOLE, 'MODEL_DIR', ('(4, 2)', '(4, 3)')),
        (state_of(adapters=False), WHOLE, 'MODEL_DIR', ('not in the model',)),
        (state_of(moment='nu'), WHOLE, 'MODEL_DIR', ('OPTIMIZER', 'mu/lora_a')),
        (state_of(), WHOLE | {'TRAIN_STEPS': 3}, 'TRAIN_STEPS', (3, 4)),
        (state_of(), WHOLE | {'MODEL_DIR': 'alone'}, 'MODEL_DIR',
         ('t5x_adapter_checkpoints.gin',)),
        (state_of(), {'MODEL_DIR': 'embedded'}, 'MODEL_DIR',
         ('moe_peft.train',)),
        *(
            (state_of(), NEW | {'INITIAL_CHECKPOINT_PATH': path},
             'INITIAL_CHECKPOINT_PATH', names)
            for path, names in {
                'none/checkpoint_0': ('hf import',),
                'hf': ('hf import', 'save_base'),
                'base': ('base/checkpoint_0?',),
                'base/checkpoint_0/state': ('no checkpoint',),
                'alone/checkpoint_4': ('MODEL_DIR',),
            }.items()
        ),
        (state_of(layer='layers'),
         NEW | {'INITIAL_CHECKPOINT_PATH': 'base/checkpoint_0'},
         'INITIAL_CHECKPOINT_PATH', ('SCAN_LAYERS = False',)),
        (state_of(), {'CHECKPOINT_PATH': 'whole/checkpoint_3'},
         'CHECKPOINT_PATH', ('does not exist', 'whole/checkpoint_4?')),
        (state_of(), {'CHECKPOINT_PATH': 'whole'}, 'CHECKPOINT_PATH',
         ('whole/checkpoint_4?',)),
        (state_of(), {'CHECKPOINT_PATH': 'base/checkpoint_0'},
         'CHECKPOINT_PATH', ('missing', 'adapter/lora_a')),
        (state_of(rank=1), {'CHECKPOINT_PATH': 'whole/checkpoint_4'},
         'CHECKPOINT_PATH', ('(4, 2)', '(4, 1)')),
    ],
)
def test_what_is_not_the_models_is_refused(
    folders, state, macros, where, names
):
  with refusals.refused(where, *names):
    check(folders, state, **macros)


@pytest.mark.parametrize(
    ('state', 'macros'),
    [
        (state_of(), WHOLE),
        (state_of(), WHOLE | {'TRAIN_STEPS': 4}),  # Which trains nothing.
        # A run begins with its base, whatever adapters lie beside it.
        *(
            (state_of(rank=3), NEW | {'INITIAL_CHECKPOINT_PATH': path})
            for path in (
                'base/checkpoint_0', 'base/checkpoint_0/', 'old/checkpoint_7',
                'whole/checkpoint_4',
            )
        ),
        (state_of(), NEW | {'INITIAL_CHECKPOINT_PATH': None}),
        (state_of(), {'MODEL_DIR': 'a_plan', 'INITIAL_CHECKPOINT_PATH': 'no'}),
        # It has no state of an optimizer.
        ({'target': state_of()['target']},
         {'CHECKPOINT_PATH': 'whole/checkpoint_4'}),
        # The adapters are looked at when they are read.
        (state_of(rank=1), {'CHECKPOINT_PATH': 'alone/checkpoint_4'}),
    ],
)
def test_what_is_passes(folders, state, macros):
  check(folders, state, **macros)
