# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A trained model as the exports see it, and how a run becomes one."""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_peft import errors
from moe_peft import gin_files
from moe_peft.core import inject
from moe_peft.core import trainable
from moe_peft.hf import entries
from moe_peft.hf import import_base
from moe_peft.hf import lazy_arrays
from moe_peft.hf import sites as sites_lib
from moe_peft.hf import t5_names
from moe_peft.models import t5


@dataclasses.dataclass(frozen=True)
class Trained:
  """A model with its adapters.

  Attributes:
    module: The adapted model.
    params: All its flat parameters.
    base_model: Name of the base on the Hub; empty if it has none.
    base_folder: Where the base was read from, with what `import_base` left
      there; None if nowhere.
    changed: Paths of the parameters of the base that were trained too.
    vocabulary: A `seqio.Vocabulary`; None: only the base's files are known.
    facts: What the card tells, label by label.
  """

  module: inject.AdaptedModule
  params: Mapping[str, np.ndarray]
  base_model: str = ''
  base_folder: Path | None = None
  changed: Sequence[str] = ()
  vocabulary: Any = None
  facts: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def config(self) -> t5.T5Config:
    return self.module.module.config

  @property
  def layout(self) -> str:
    return 'scan' if self.config.scan_layers else 't5'

  @functools.cached_property
  def sites(self) -> list[sites_lib.AdaptedSite]:
    return sites_lib.read(self.module, self.params)

  @functools.cached_property
  def base_params(self) -> dict[str, np.ndarray]:
    return {
        k: v for k, v in self.params.items() if not trainable.is_adapter(k)
    }

  @property
  def float32_module(self) -> inject.AdaptedModule:
    """The model with float32 arithmetic, in which exports are compared."""
    config = self.config.replace(
        dtype=jnp.float32, dropout_rate=0.0, remat_policy='none'
    )
    return self.module.clone(module=self.module.module.clone(config=config))

  def apply(
      self, params: Mapping[str, Any], batch: Mapping[str, Any], **options: Any
  ) -> Any:
    """Applies the model in float32.

    Args:
      params: Flat parameters; those of a bare base leave the adapters out.
      batch: `encoder_input_tokens`, `decoder_input_tokens` (beginning with 0)
        and `decoder_target_tokens`, <int32>[batch, length]; 0 is padding.
      **options: Of `nn.Module.apply`.

    Returns:
      Logits <float32>[batch, length, vocab], and what `mutable` asks for.
    """
    module = self.float32_module
    if not any(trainable.is_adapter(path) for path in params):
      module = module.module
    params = {k: jnp.asarray(v, jnp.float32) for k, v in params.items()}
    return module.apply(
        {'params': trainable.unflatten(params)}, **batch, enable_dropout=False,
        **options,
    )

  def hf_tensors(self) -> dict[str, lazy_arrays.LazyArray]:
    """Hugging Face tensors of the bare base, by name.

    Raises:
      errors.UserError: If layers have position biases of their own, which T5
        cannot hold.
    """
    tensors = {}
    for entry in t5_names.entries(self.config, self.layout):
      parameter = self.params[entry.path]
      if entry.stacked and len(set(entry.sources)) == 1:
        first, *others = np.moveaxis(parameter, entries.SCAN_AXIS, 0)
        if not all(np.array_equal(first, other) for other in others):
          raise errors.UserError(
              f'{entry.path} differs from layer to layer; T5 shares one table '
              'per stack. It was trained, which export does not support.',
              where=entry.path,
          )
      for index, source in enumerate(entry.sources):
        tensors[source] = lazy_arrays.LazyArray(
            entry.hf_shape, functools.partial(entry.revert, parameter, index)
        )
    return tensors


def from_run(base_model: str = '') -> Trained:
  """Restores the newest checkpoint of the run that gin describes.

  `base_model` is the name of the base on the Hub, where the run has none.

  Raises:
    errors.UserError: If the run has no checkpoint or another model than T5.
  """
  from moe_peft.training import experiment as experiment_lib
  from moe_peft.training import loop
  from moe_peft.training import run

  # The base is read in the precision of its file, in which others load it too.
  experiment = dataclasses.replace(run.build(), base_dtype=jnp.float32)
  network = getattr(experiment.model.module, 'module', None)
  if not isinstance(network, t5.Transformer):
    raise errors.UserError(
        f'The run trains a {type(network).__name__}; only T5 models can be '
        'exported.', where='MODEL',
        remedy='Train a model of gin/models/t5_*.gin, mt5_*.gin, byt5_*.gin, '
        'or an imported T5.',
    )
  setup = experiment_lib.prepare(experiment)
  with contextlib.closing(loop.open_checkpoints(setup)) as checkpointer:
    params = jax.device_get(loop.restore_params(setup, checkpointer))
    step = checkpointer.require_step()
  folder = _base_folder(experiment.initial_checkpoint_path)
  source = import_base.read_source(folder) if folder else {}
  return Trained(
      module=experiment.model.module,
      params={k: np.asarray(v) for k, v in params.items()},
      base_model=base_model or source.get('base_model', ''),
      base_folder=folder,
      changed=[k for k in setup.trainable if not trainable.is_adapter(k)],
      vocabulary=experiment.model.input_vocabulary,
      facts={
          'trained on': f'`{experiment.mixture_or_task_name}`',
          'steps': f'{step}, {experiment.batch_size} examples each',
          'base': str(setup.base.get('sha256') or 'random')[:16]
          + ' (first digits of our fingerprint)',
      },
  )


def _base_folder(path: str | None) -> Path | None:
  if path is None:
    return None
  folder = Path(path).expanduser()
  if not folder.exists():
    folder = gin_files.resource(path)
  # The path may name a file, or the checkpoint_0 of an imported base.
  inside = not folder.is_dir() or folder.name.startswith('checkpoint_')
  return folder.parent if inside else folder
