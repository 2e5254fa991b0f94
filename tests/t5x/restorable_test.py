# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What T5X may begin with: a base, a run that goes on, what is evaluated."""

from etils import epath
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
  (tmp_path / 'cut_off/checkpoint_6').mkdir(parents=True)
  (tmp_path / 'hf').mkdir()
  (tmp_path / 'new').mkdir()
  (tmp_path / 'embedded').mkdir()
  (tmp_path / 'embedded/train.lock').touch()
  return tmp_path


TRAIN = """
from __gin__ import dynamic_registration
from t5x import train
from t5x import utils
train.train:
  checkpoint_cfg = @utils.CheckpointConfig()
  model_dir = %MODEL_DIR
  total_steps = %TRAIN_STEPS
utils.CheckpointConfig.restore = @utils.RestoreCheckpointConfig()
utils.RestoreCheckpointConfig:
  path = %INITIAL_CHECKPOINT_PATH
  mode = 'specific'
  assignment_map = ((%FRESH_REGEX, None),)
  fallback_to_scratch = True
INITIAL_CHECKPOINT_PATH = []
TRAIN_STEPS = 8
"""
EVALUATE = """
from __gin__ import dynamic_registration
from t5x import eval as eval_script
from t5x import utils
eval_script.evaluate.restore_checkpoint_cfg = @utils.RestoreCheckpointConfig()
utils.RestoreCheckpointConfig:
  path = %CHECKPOINT_PATH
  mode = 'specific'
"""


def check(folders, state, more='', **macros):
  """Checks it; values of macros that are paths lie in `folders`."""
  gin.clear_config()
  with gin.config.interactive_mode():
    gin.parse_config("FRESH_REGEX = 'state/.*|target/.*/adapter/.*'")
    gin.parse_config(TRAIN if 'MODEL_DIR' in macros else EVALUATE)
    for name, value in macros.items():
      value = str(folders / value) if isinstance(value, str) else value
      gin.parse_config(f'{name} = {value!r}')
    gin.parse_config(more.replace('FOLDER', str(folders)))
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
        (state_of(), {'MODEL_DIR': 'whole/checkpoint_4'}, 'MODEL_DIR',
         ('is a checkpoint',)),
        (state_of(), WHOLE | {'MODEL_DIR': 'cut_off'}, 'MODEL_DIR',
         ('cut_off/checkpoint_6',)),
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


RESTORE = """
from __gin__ import dynamic_registration
from t5x import utils
utils.RestoreCheckpointConfig."""
FRESH = f'{RESTORE}fallback_to_scratch = True\n'
MAPPED = """utils.RestoreCheckpointConfig.assignment_map = (
    (%FRESH_REGEX, None),
)"""
BASE = {'CHECKPOINT_PATH': 'base/checkpoint_0'}


@pytest.mark.parametrize(
    ('more', 'macros'),
    [
        # What T5X looks for itself, or gives other names or shapes.
        (f"{RESTORE}mode = 'latest'",
         NEW | {'INITIAL_CHECKPOINT_PATH': 'base'}),
        (f"{RESTORE}mode = 'all'", {'CHECKPOINT_PATH': 'whole'}),
        (f"{RESTORE}assignment_map = (('target/(.*)/layers/(.*)', "
         "r'target/\\1/layers_0/\\2'),)",
         NEW | {'INITIAL_CHECKPOINT_PATH': 'base/checkpoint_0'}),
        (f'{RESTORE}state_transformation_fns = (1,)', BASE),
        # What T5X does not read.
        (f'{RESTORE}path = []', NEW | {'INITIAL_CHECKPOINT_PATH': 'none'}),
        (RESTORE.replace('RestoreCheckpointConfig', 'CheckpointConfig')
         + 'restore = None', NEW | {'INITIAL_CHECKPOINT_PATH': 'none'}),
        ('', NEW | {'CHECKPOINT_PATH': 'none'}),
    ],
)
def test_what_t5x_does_not_read_as_it_is_is_its_own(folders, more, macros):
  layer = 'layers' if 'layers' in more else 'layers_0'
  check(folders, state_of(layer=layer), more, **macros)


@pytest.mark.parametrize('fresh', [FRESH, FRESH + MAPPED])
def test_fresh_adapters_are_evaluated_with_a_base_of_the_model(folders, fresh):
  check(folders, state_of(), fresh, **BASE)
  with refusals.refused('CHECKPOINT_PATH', 'SCAN_LAYERS = False'):
    check(folders, state_of(layer='layers'), fresh, **BASE)


def test_a_run_that_has_a_checkpoint_to_evaluate_is_checked(folders):
  path = {'CHECKPOINT_PATH': 'whole/checkpoint_4'}
  with refusals.refused('MODEL_DIR', '(4, 1)'):
    check(folders, state_of(rank=1), **WHOLE | path)


def test_a_path_that_is_bound_itself_is_read(folders):
  with refusals.refused('utils.RestoreCheckpointConfig.path', 'checkpoint_0?'):
    check(
        folders, state_of(), f"{RESTORE}path = 'FOLDER/base'", **NEW,
        INITIAL_CHECKPOINT_PATH='base/checkpoint_0',
    )


SAVE = """
from __gin__ import dynamic_registration
from moe_peft.t5x import checkpoints
from t5x import utils
utils.SaveCheckpointConfig.checkpointer_cls = @checkpoints.AdapterCheckpointer
"""


def test_runs_of_our_checkpointer_go_on(folders):
  alone = WHOLE | {'MODEL_DIR': 'alone'}
  check(folders, state_of(), SAVE, **alone)
  with refusals.refused('MODEL_DIR', 't5x_adapter_checkpoints.gin'):
    stock = SAVE.replace('moe_peft.t5x', 't5x').replace('Adapter', '')
    check(folders, state_of(), stock, **alone)


NO_BASE = f"{RESTORE.replace('RestoreCheckpoint', 'Checkpoint')}restore = None"


@pytest.mark.parametrize(
    ('more', 'base', 'words'),
    [
        ('', None, ('INITIAL_CHECKPOINT_PATH', 'random')),
        ('', [], ('INITIAL_CHECKPOINT_PATH', 'random')),
        (NO_BASE, 'base/checkpoint_0', ('INITIAL_CHECKPOINT_PATH', 'random')),
        (SAVE, None, ('INITIAL_CHECKPOINT_PATH', 'random', 'without these')),
        ("TRAINABLE_REGEX = '.*'", None, ()),  # It is trained from scratch.
        ('', 'base/checkpoint_0', ()),
    ],
)
def test_adapters_on_random_parameters_are_a_warning(
    folders, caplog, more, base, words
):
  check(folders, state_of(), more, **NEW, INITIAL_CHECKPOINT_PATH=base)
  assert all(word in caplog.text for word in words)
  assert words or not caplog.text


def test_a_bucket_that_cannot_be_read_is_named(folders, monkeypatch):
  def denied(path):
    raise PermissionError('Anonymous caller')

  monkeypatch.setattr(type(epath.Path('/')), 'exists', denied)
  with refusals.refused('CHECKPOINT_PATH', 'Anonymous', 'credentials'):
    check(folders, state_of(), CHECKPOINT_PATH='whole/checkpoint_4')


@pytest.mark.parametrize('damage', ['', 'not JSON'])
def test_a_checkpoint_without_metadata_is_refused(folders, damage):
  metadata = folders / 'base/checkpoint_0/state/_METADATA'
  metadata.write_text(damage) if damage else metadata.unlink()
  with refusals.refused(metadata.parent, '_METADATA'):
    check(
        folders, state_of(), **NEW, INITIAL_CHECKPOINT_PATH='base/checkpoint_0'
    )


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
