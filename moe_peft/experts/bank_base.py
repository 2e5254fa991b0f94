# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The base of a bank: its sizes, its layers in transformers, its parameters."""

from collections.abc import Iterable, Mapping
import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from moe_peft import errors
from moe_peft.core import trainable
from moe_peft.hf import import_base
from moe_peft.hf import networks
from moe_peft.training import base_identity
from moe_peft.training import bases


@dataclasses.dataclass(frozen=True)
class Base:
  """A base.

  Attributes:
    path: As INITIAL_CHECKPOINT_PATH names it.
    config: The configuration of its network.
    hf_config: Its `config.json`.
    layout: Layout of its parameters.
    name: Its name on the Hub; '' if it has none.
    identity: What tells it from others, see `base_identity.of`.
  """

  path: str
  config: Any
  hf_config: Mapping[str, Any]
  layout: str
  name: str
  identity: Mapping[str, Any]

  @property
  def folder(self) -> Path:
    """Where its files lie."""
    return _folder(self.path)

  @property
  def network(self) -> networks.Network:
    return networks.of(self.config)

  @property
  def kind(self) -> str:
    return self.hf_config['model_type']

  @functools.cached_property
  def layers(self) -> dict[str, networks.Layer]:
    """The layers that may carry adapters, by path without a scan."""
    return self.network.layers(self.config, self.kind)

  @functools.cached_property
  def module_shapes(self) -> dict[str, tuple[int, ...]]:
    """Shapes [out, in] of the modules of transformers."""
    return self.network.module_shapes(self.config, self.kind)

  @functools.cached_property
  def params(self) -> Mapping[str, np.ndarray]:
    """Its flat parameters, without the experts of a bank; read one by one."""
    return _params(self.path)

  def check_run(self, folder: Path, identity: Mapping[str, Any]) -> None:
    """Raises errors.UserError for a run on another base."""
    if base_identity.is_same(identity, self.identity):
      return
    raise errors.UserError(
        f'{folder} was trained on another base: {identity.get("path")}, sha256 '
        f'{str(identity.get("sha256"))[:12]}, and {self.path} has '
        f'{str(self.identity.get("sha256"))[:12]}.',
        where='--from',
        remedy='Experts of a bank share their base; give --base the one of '
        'this run, and leave the others out.',
    )

  def check_layers(self, folder: Path, paths: Iterable[str]) -> None:
    """Raises errors.UserError for adapters where a bank has none."""
    if others := set(paths) - self.layers.keys():
      raise errors.UserError(
          f'{folder} has an adapter at {min(others)}, and a bank has none at '
          'this layer.', where='--from',
          remedy='Train it again, with SITES of attention projections, wi, '
          'wi_0, wi_1 and wo alone.',
      )

  def check_name(self, folder: Path, name: Any, unchecked: bool) -> str:
    """Compares the name of the base that a PEFT folder gives.

    Args:
      folder: The folder.
      name: Its `base_model_name_or_path`. Of a path, the last part counts.
      unchecked: Whether another name is allowed.

    Returns:
      'name', or 'shapes' if one of both has no name or another is allowed.

    Raises:
      errors.UserError: If the names differ.
    """
    last = lambda text: text.rstrip('/').rpartition('/')[2].casefold()
    if not isinstance(name, str) or not name or not self.name:
      return 'shapes'
    if last(name) == last(self.name):
      return 'name'
    if unchecked:
      return 'shapes'
    raise errors.UserError(
        f'{folder} says that it was trained on {name!r:.80}, and the base is '
        f'{self.name!r:.80}.',
        where='--from',
        remedy='If both are the same model, add --unchecked: then the shapes '
        'of its layers must fit, and nothing else is compared.',
    )


def read(path: str, config: Any = None) -> Base:
  """Reads a base.

  Args:
    path: As INITIAL_CHECKPOINT_PATH names it: a base of `hf import`, or any
      other.
    config: The configuration of its network, for any other.

  Raises:
    errors.UserError: If there is none, or if nothing says what it is.
  """
  folder = _folder(path)
  hf_config = import_base.read_hf_config(folder)
  source = import_base.read_source(folder)
  layout = source.get('layout', 't5')
  if hf_config:
    config = import_base.config_of(hf_config, layout)
  elif config is None:
    raise errors.UserError(
        f'Nothing says what {path} is: it has no {import_base.HF_CONFIG_FILE}.',
        where='--base',
        remedy='Import it with python -m moe_peft hf import, or give a run on '
        'it as the first --from.',
    )
  else:
    layout = 'scan' if config.scan_layers else 't5'
    hf_config = networks.of(config).to_hf(config, {})
  return Base(
      path, config, hf_config, layout, source.get('base_model', ''),
      base_identity.of(path, _params(path)),
  )


def _folder(path: str) -> Path:
  found = bases.find(path, '--base')
  inside = not found.is_dir() or found.name.startswith('checkpoint_')
  return found.parent if inside else found


def _params(path: str) -> Mapping[str, np.ndarray]:
  arrays = bases.read_arrays(bases.find(path))
  return arrays.only(k for k in arrays if not trainable.is_adapter(k))
