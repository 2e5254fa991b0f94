# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""A bank: LoRAs that were trained apart, as the frozen experts of one base.

The folder is a base that both engines read (the parameters of the base, and
the experts beside them). It holds each expert once more as a plain PEFT folder,
all of one rank, scale and set of modules, as PEFT's `create_arrow_model` wants
them and vLLM serves them.
"""

from collections.abc import Mapping, Sequence
import functools
from pathlib import Path

import numpy as np

from moe_peft import atomic
from moe_peft import errors
from moe_peft.experts import bank_arrays
from moe_peft.experts import bank_base
from moe_peft.experts import bank_card
from moe_peft.experts import bank_experts
from moe_peft.experts import bank_file
from moe_peft.experts import bank_gin
from moe_peft.experts import bank_peft
from moe_peft.experts import bank_sources
from moe_peft.hf import folders
from moe_peft.hf import import_base
from moe_peft.hf import lazy_arrays
from moe_peft.hf import xlora_config
from moe_peft.training import bases

# Files of an imported base besides its parameters.
_BASE_FILES = (
    *folders.TOKENIZER_FILES, folders.GENERATION_CONFIG, 'model.gin',
    import_base.HF_CONFIG_FILE, import_base.SOURCE_FILE,
)


def build(
    sources: Sequence[str],
    base_path: str,
    out: Path,
    *,
    unchecked: bool = False,
    trust: bool = False,
    force: bool = False,
) -> bank_file.Bank:
  """Makes a bank.

  Args:
    sources: `NAME=FOLDER`, or `FOLDER` alone: PEFT folders of LoRAs, folders of
      them, and finished runs; or one X-LoRA, whose classifier is kept.
    base_path: The base, as INITIAL_CHECKPOINT_PATH names it.
    out: Folder to write; appears when it is whole.
    unchecked: Whether PEFT folders may name another base.
    trust: Whether the `config.gin` of a run is code like any other.
    force: As in `atomic.new_folder`.

  Raises:
    errors.UserError: For a source that is no LoRA, or not of this base, and
      for two of one name.
  """
  xlora = bank_sources.xlora(sources)
  with atomic.new_folder(out, '--out', force) as folder:
    base, experts = bank_sources.read(
        sources, base_path, None, unchecked, trust
    )
    if xlora is None:
      return _write(folder, out, base, experts)
    classifier = bank_sources.classifier(xlora, base, unchecked)
    return _write(folder, out, base, experts, classifier, str(xlora))


def add(
    bank_dir: Path, sources: Sequence[str], *, unchecked: bool = False,
    trust: bool = False,
) -> bank_file.Bank:
  """Adds experts behind those of a bank; arguments as of `build`.

  The folder of before stays beside it as `NAME.old`.
  """
  known = bank_file.read(bank_dir)
  _check_free(bank_dir, known)
  bank_sources.xlora([str(bank_dir), *sources])  # None comes beside a bank.
  with atomic.new_folder(bank_dir, '--out', force=True) as folder:
    base = _base_of(bank_dir, known)
    _, more = bank_sources.read(sources, base.path, base, unchecked, trust)
    experts = [*_experts_of(bank_dir, known, base), *more]
    return _write(folder, bank_dir, base, experts)


def remove(bank_dir: Path, names: Sequence[str]) -> bank_file.Bank:
  """Takes experts out of a bank; the folder of before stays as `NAME.old`.

  Raises:
    errors.UserError: For a name that is none of an expert, and if none stays.
  """
  known = bank_file.read(bank_dir)
  _check_free(bank_dir, known)
  for name in names:
    if name not in known.names:
      raise errors.UserError(
          f'{bank_dir} has no expert {name}.', where=name,
          remedy=f'It has {", ".join(known.names)}.',
      )
  if set(names) == set(known.names):
    raise errors.UserError(
        'A bank without experts is none.', where=bank_dir,
        remedy='Leave one, or remove the folder.',
    )
  with atomic.new_folder(bank_dir, '--out', force=True) as folder:
    base = _base_of(bank_dir, known)
    experts = _experts_of(bank_dir, known, base)
    experts = [x for x in experts if x.record.name not in names]
    return _write(folder, bank_dir, base, experts)


def _check_free(bank_dir: Path, known: bank_file.Bank) -> None:
  """Raises errors.UserError for a bank whose experts belong together."""
  if known.classifier:
    raise errors.UserError(
        f'{bank_dir} has the classifier of an X-LoRA, which weighs these '
        'experts and no others.', where=bank_dir,
        remedy='Build another bank, without the classifier: python -m moe_peft '
        f'bank build --from {bank_dir / bank_peft.FOLDER / known.names[0]} ...',
    )


def load(bank_dir: Path) -> tuple[bank_file.Bank, dict[str, np.ndarray]]:
  """The record of a bank and the parameters of its experts, without a scan."""
  known = bank_file.read(bank_dir)
  base = _base_of(bank_dir, known)
  experts = _experts_of(bank_dir, known, base)
  layers = bank_arrays.layers_of(experts, base)
  pairs = [bank_arrays.in_bank(x, layers, base, known.rank) for x in experts]
  return known, bank_arrays.flat(experts, pairs)


def _base_of(bank_dir: Path, known: bank_file.Bank) -> bank_base.Base:
  """The base of a bank, from the bank itself."""
  return bank_base.Base(
      str(bank_dir),
      import_base.config_of(known.config, known.layout),
      known.config, known.layout, known.base_model, known.base,
  )


def _experts_of(
    bank_dir: Path, known: bank_file.Bank, base: bank_base.Base
) -> list[bank_experts.Expert]:
  return [
      bank_experts.of_bank(bank_dir / bank_peft.FOLDER, record, base)
      for record in known.experts
  ]


def _write(
    folder: Path, out: Path, base: bank_base.Base,
    experts: Sequence[bank_experts.Expert],
    classifier: xlora_config.Classifier | None = None, source: str = '',
) -> bank_file.Bank:
  """Writes a bank into a folder that will be `out`.

  Args:
    folder: Where to write.
    out: What it will be.
    base: The base.
    experts: The experts.
    classifier: What weighs them, if they are those of an X-LoRA.
    source: Where the classifier was read.
  """
  _check_names([expert.record.name for expert in experts])
  rank = max(expert.rank for expert in experts)
  layers = bank_arrays.layers_of(experts, base)
  pairs = [bank_arrays.in_bank(x, layers, base, rank) for x in experts]
  bank = bank_file.Bank(
      experts=tuple(expert.record for expert in experts),
      base=base.identity, base_model=base.name, config=base.hf_config,
      layout=base.layout, rank=rank,
      classifier=source,
  )
  for expert, pair in zip(experts, pairs, strict=True):
    bank_peft.write(folder, expert, pair, base)
  if base.network.task_type == 'CAUSAL_LM':  # X-LoRA knows no other models.
    bank_peft.write_xlora(
        folder, out.expanduser().absolute(), bank.names, base, classifier
    )
  bank.write(folder)
  bank_card.write(folder, bank)
  folders.copy_files(base.folder, folder, _BASE_FILES)
  arrays = {
      name: lazy_arrays.LazyArray(
          x.shape, functools.partial(base.params.__getitem__, name), x.dtype
      )
      for name, x in base.params.items()
  } | {
      name: lazy_arrays.of(x)
      for name, x in (
          bank_arrays.params(experts, pairs, base)
          | bank_arrays.classifier(classifier)
      ).items()
  }
  path = out.expanduser().absolute()
  if bases.t5x_checkpoint(base.path) is not None:  # T5X reads it too.
    lazy_arrays.write_orbax(folder, arrays)
    path /= Path(bases.T5X_BASE).parent
  else:
    lazy_arrays.write_safetensors(folder / bases.BASE_FILE, arrays)
  sites = bank_arrays.sites(layers, base)
  bank_gin.write(folder, bank, sites, path, classifier)
  return bank


def _check_names(names: Sequence[str]) -> None:
  for name in names:
    if not bank_file.NAME.fullmatch(name):
      raise errors.UserError(
          f'{name!r:.80} is no name of an expert.', where='--from',
          remedy='Give it one, of letters, digits, dots and dashes: '
          '--from NAME=FOLDER.',
      )
    if names.count(name) > 1:
      raise errors.UserError(
          f'Two experts have the name {name}.', where='--from',
          remedy='Give them others: --from NAME=FOLDER.',
      )


def columns(bank_dir: Path, bank: bank_file.Bank) -> dict[str, list[str]]:
  """The experts that have what a router keeps of each, by what that is."""
  experts = bank_dir.expanduser() / bank_peft.FOLDER
  return {
      column: [
          name for name in bank.names
          if (experts / name / f'{column}.safetensors').is_file()
      ]
      for column in bank_experts.COLUMNS.values()
  }


def describe(
    bank_dir: Path, bank: bank_file.Bank
) -> Mapping[str, Sequence[str]]:
  """A row for each expert, by name, as `bank show` prints it."""
  having = columns(bank_dir, bank)
  return {
      x.name: (
          x.source, x.licence or 'unknown', str(x.rank), str(x.layers),
          x.checked, ', '.join(k for k, names in having.items()
                               if x.name in names),
      )
      for x in bank.experts
  }


def lacking(bank_dir: Path, bank: bank_file.Bank) -> list[str]:
  """A sentence for each router that some of the experts are not ready for."""
  return [
      f'{", ".join(x for x in bank.names if x not in names)} without {column}: '
      f'gin/methods/{bank_experts.ROUTERS[column]} needs those of all experts'
      for column, names in columns(bank_dir, bank).items()
      if 0 < len(names) < len(bank.names)
  ]


def routers(bank_dir: Path, bank: bank_file.Bank) -> list[str]:
  """The method files of routers that all experts have been prepared for."""
  return [
      bank_experts.ROUTERS[column]
      for column, names in columns(bank_dir, bank).items()
      if names == bank.names
  ]
