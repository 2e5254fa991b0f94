# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A trained run as the exports need it."""

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
from moe_peft.core import inject
from moe_peft.core import trainable
from moe_peft.data import chat as chat_lib
from moe_peft.data import prompts
from moe_peft.hf import entries
from moe_peft.hf import folds
from moe_peft.hf import import_base
from moe_peft.hf import lazy_arrays
from moe_peft.hf import networks
from moe_peft.hf import sites as sites_lib
from moe_peft.models import dataset_ids
from moe_peft.models import language_model


@dataclasses.dataclass(frozen=True)
class Trained:
  """A model with its adapters.

  Attributes:
    model: The adapted model.
    params: All its flat parameters.
    hf_config: The `config.json` of its base, if that was imported.
    base_model: Name of the base on the Hub; empty if it has none.
    base_folder: Where the base was read from, with what `import_base` left
      there; None if nowhere.
    changed: Paths of the parameters of the base that were trained too.
    inputs_end: Whether inputs end with the end of a sequence, as its tasks say.
    chat: How conversations become tokens, a `chat.Chat`, as its tasks say; None
      if they have none.
    lengths: Most tokens of 'inputs' and 'targets'.
    facts: What the card tells, label by label.
  """

  model: language_model.LanguageModel
  params: Mapping[str, np.ndarray]
  hf_config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  base_model: str = ''
  base_folder: Path | None = None
  changed: Sequence[str] = ()
  inputs_end: bool = True
  chat: chat_lib.Chat | None = None
  lengths: Mapping[str, int] = dataclasses.field(
      default_factory=lambda: {'inputs': 512, 'targets': 512}
  )
  facts: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def module(self) -> inject.AdaptedModule:
    return self.model.module

  @property
  def vocabulary(self) -> Any:
    """A `seqio.Vocabulary`; None: only the base's files are known."""
    return self.model.input_vocabulary

  @property
  def config(self) -> Any:
    return self.module.module.config

  @property
  def network(self) -> networks.Network:
    return networks.of(self.config)

  @functools.cached_property
  def kind(self) -> str:
    """The `model_type` of the exported model."""
    return self.hf_config_json()['model_type']

  @property
  def layout(self) -> str:
    return 'scan' if self.config.scan_layers else 't5'

  @functools.cached_property
  def layers(self) -> dict[str, networks.Layer]:
    """The layers that may carry adapters, by path, unrolled."""
    return self.network.layers(self.config, self.kind)

  @functools.cached_property
  def sites(self) -> list[sites_lib.AdaptedSite]:
    """Its adapters; empty if all of the model was trained."""
    if not self.module.rules:
      return []
    found = sites_lib.read(self.model, self.params, self.layers)
    return [simple for site in found for simple in folds.simplest(site)]

  @functools.cached_property
  def base_params(self) -> dict[str, np.ndarray]:
    return {
        k: v for k, v in self.params.items() if not trainable.is_adapter(k)
    }

  @functools.cached_property
  def float32_model(self) -> language_model.LanguageModel:
    """The model with float32 arithmetic, in which exports are compared."""
    config = self.config.replace(
        dtype=jnp.float32, dropout_rate=0.0, remat_policy='none'
    )
    network = self.module.module.clone(config=config)
    return dataclasses.replace(
        self.model, module=self.module.clone(module=network)
    )

  def model_of(
      self, params: Mapping[str, Any]
  ) -> tuple[language_model.LanguageModel, Mapping[str, Any]]:
    """The float32 model for flat parameters, and these nested.

    Those of a bare base leave the adapters out.
    """
    model = self.float32_model
    if not any(trainable.is_adapter(path) for path in params):
      model = model.without_adapters()
    params = {k: jnp.asarray(v, jnp.float32) for k, v in params.items()}
    return model, trainable.unflatten(params)

  def hf_config_json(self) -> dict[str, Any]:
    """The contents of the exported `config.json`."""
    ids = {}
    if self.network.task_type == 'CAUSAL_LM' and not self.hf_config:
      offset = dataset_ids.offset(self.vocabulary)
      ends = [x - offset for x in dataset_ids.stop_ids(self.vocabulary)]
      ids = {
          'bos_token_id': self.model.bos_id,
          'eos_token_id': ends if len(ends) > 1 else ends[0],
          'pad_token_id': None if offset else self.vocabulary.pad_id,
      }
    return self.network.to_hf(self.config, self.hf_config) | ids

  def hf_tensors(self) -> dict[str, lazy_arrays.LazyArray]:
    """Hugging Face tensors of the bare base, as the files of its kind."""
    return self.stored(self.separate_tensors())

  def stored(
      self, tensors: Mapping[str, lazy_arrays.LazyArray]
  ) -> dict[str, lazy_arrays.LazyArray]:
    """Tensors as files hold them, of those that `separate_tensors` makes."""
    return self.network.stored(tensors, self.config, self.kind)

  def separate_tensors(self) -> dict[str, lazy_arrays.LazyArray]:
    """The same with a tensor for each layer of ours.

    Raises:
      errors.UserError: If layers have position biases of their own, which T5
        cannot hold.
    """
    tensors = {}
    for entry in self.network.entries(self.config, self.layout):
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

  @property
  def shared_modules(self) -> set[str]:
    """Modules whose weights are those of others too."""
    if not (self.config.logits_via_embedding or self.network.shares_embedding):
      return set()
    found = self.network.entries(self.config, self.layout)
    return {
        entry.sources[0].removesuffix('.weight')
        for entry in found
        if entry.path == entries.EMBEDDING
    }

  def changed_tensors(self) -> list[str]:
    """Names of the Hugging Face tensors that were trained besides adapters."""
    _, parts = self.network.stored_shapes(self.config, self.kind)
    return [
        parts.get(source, (source,))[0]
        for entry in self.network.entries(self.config, self.layout)
        if entry.path in self.changed
        for source in entry.sources
    ]


def from_run(base_model: str = '', file_format: str = 'peft') -> Trained:
  """Restores the newest checkpoint of the run that gin describes.

  Args:
    base_model: Name of the base on the Hub, where the run has none.
    file_format: What it is to be written as, of `formats.FORMATS`.

  Raises:
    errors.UserError: If the run has no checkpoint or a model of an unknown
      family, and as of `name_of_base`.
  """
  from moe_peft.training import experiment as experiment_lib
  from moe_peft.training import loop
  from moe_peft.training import run

  # The base is read in the precision of its file, as other programs load it.
  experiment = dataclasses.replace(run.build(), base_dtype=jnp.float32)
  network = getattr(experiment.model.module, 'module', None)
  networks.of(getattr(network, 'config', None))
  folder = _base_folder(experiment.initial_checkpoint_path)
  source = import_base.read_source(folder) if folder else {}
  base_model = name_of_base(source, base_model, file_format)
  setup = experiment_lib.prepare(experiment)
  with contextlib.closing(loop.open_checkpoints(setup)) as checkpointer:
    params = jax.device_get(loop.restore_params(setup, checkpointer))
    step = checkpointer.require_step()
  asked = prompts.of_task(
      experiment.mixture_or_task_name, experiment.model.input_vocabulary, False
  )
  return Trained(
      model=experiment.model,
      params={k: np.asarray(v) for k, v in params.items()},
      hf_config=import_base.read_hf_config(folder) if folder else {},
      base_model=base_model,
      base_folder=folder,
      changed=[k for k in setup.trainable if not trainable.is_adapter(k)],
      inputs_end=asked.ends,
      chat=asked.chats,
      lengths=experiment.task_feature_lengths,
      facts={
          'trained on': f'`{experiment.mixture_or_task_name}`',
          'steps': f'{step}, {experiment.batch_size} examples each',
          'base': str(setup.base.get('sha256') or 'random')[:16]
          + ' (first digits of our fingerprint)',
      },
  )


def name_of_base(
    source: Mapping[str, Any], given: str, file_format: str
) -> str:
  """The name of a base on the Hub; '' for none.

  Args:
    source: What its import recorded.
    given: As the user says; '' for nothing.
    file_format: As of `from_run`.

  Raises:
    errors.UserError: For adapters of a part of the model of that name.
  """
  if given and 'part_of' in source and file_format in ('peft', 'experts'):
    raise errors.UserError(
        f'The base is the decoder of {given}, a model that reads images, whose '
        'modules have other names: no adapter would be loaded.', '--hub_id',
        'Leave it out: the base is written into the folder.',
    )
  return given or source.get('base_model', '')


def _base_folder(path: str | None) -> Path | None:
  from moe_peft.training import bases

  if path is None:
    return None
  folder = bases.find(path)
  # The path may name a file, or the checkpoint_0 of an imported base.
  inside = not folder.is_dir() or folder.name.startswith('checkpoint_')
  return folder.parent if inside else folder
