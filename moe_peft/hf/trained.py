# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A trained model as the exports see it, and how a run becomes one."""

from collections.abc import Mapping
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
from moe_peft.hf import import_base
from moe_peft.hf import names
from moe_peft.hf import sites as sites_lib
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
    vocabulary: A `seqio.Vocabulary`; None: only the base's files are known.
    facts: What the card tells, label by label.
  """

  module: inject.AdaptedModule
  params: Mapping[str, np.ndarray]
  base_model: str = ''
  base_folder: Path | None = None
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
    """The model with float32 arithmetic: exports are compared in it."""
    config = self.config.replace(
        dtype=jnp.float32, dropout_rate=0.0, remat_policy='none'
    )
    return self.module.clone(module=self.module.module.clone(config=config))

  def logits(
      self,
      encoder_tokens: np.ndarray,
      decoder_tokens: np.ndarray,
      params: Mapping[str, np.ndarray] | None = None,
  ) -> np.ndarray:
    """Logits in float32.

    Args:
      encoder_tokens: <int32>[batch, encoder_length], 0 is padding.
      decoder_tokens: <int32>[batch, length], beginning with 0.
      params: Other parameters; those of a bare base leave the adapters out.

    Returns:
      <float32>[batch, length, vocab].
    """
    params = self.params if params is None else params
    module = self.float32_module
    if not any(trainable.is_adapter(path) for path in params):
      module = module.module
    with jax.default_matmul_precision('highest'):
      run = jax.jit(
          lambda params: module.apply(
              {'params': trainable.unflatten(params)},
              encoder_tokens,
              decoder_tokens,
              np.ones_like(decoder_tokens),
              enable_dropout=False,
          )
      )
      params = {k: np.asarray(v, np.float32) for k, v in params.items()}
      return np.asarray(run(params), np.float32)


def from_run(base_model: str = '') -> Trained:
  """Restores the newest checkpoint of the run that gin describes.

  Args:
    base_model: Name of the base on the Hub, where the run does not know it.

  Raises:
    errors.UserError: If the run has no checkpoint or another model than T5.
  """
  from moe_peft.training import experiment as experiment_lib
  from moe_peft.training import loop
  from moe_peft.training import run

  # In the precision of its file: whoever loads the export has no other base.
  experiment = dataclasses.replace(run.build(), base_dtype=jnp.float32)
  network = getattr(experiment.model.module, 'module', None)
  if not isinstance(network, t5.Transformer):
    raise errors.UserError(
        f'The run trains a {type(network).__name__}; only T5 models '
        '(gin/models/t5*.gin and the like) can be exported.'
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
  # A file, or the checkpoint_0 of an imported base.
  inside = not folder.is_dir() or folder.name.startswith('checkpoint_')
  return folder.parent if inside else folder


def hf_shapes(trained: Trained) -> dict[str, Any]:
  """Hugging Face tensors of the bare base: `{name: (shape, read)}`.

  Raises:
    errors.UserError: If layers have position biases of their own, which T5
      cannot hold.
  """
  params, config = trained.base_params, trained.config

  def read(path):
    return np.asarray(params[path], np.float32)

  width = (config.vocab_size, config.emb_dim)
  tensors = {'shared.weight': (width, lambda: read(names.EMBEDDING))}
  if not config.logits_via_embedding:
    tensors[names.HF_LOGITS] = (width, lambda: read(names.LOGITS).T)
  for entry in names.entries(config, trained.layout):
    if entry.stacked and len(set(entry.sources)) == 1:
      _check_equal_layers(entry, read(entry.path))
    for index, source in enumerate(entry.sources):

      def get(entry=entry, index=index):
        return list(entry.revert(read(entry.path)))[index][1]

      tensors[source] = (entry.hf_shape, get)
  return tensors


def _check_equal_layers(entry: names.Entry, parameter: np.ndarray) -> None:
  if not all(np.array_equal(parameter[:, 0], x) for x in
             np.moveaxis(parameter, 1, 0)):
    raise errors.UserError(
        f'{entry.path} differs from layer to layer; T5 shares one table per '
        'stack. It was trained, which export does not support.'
    )
