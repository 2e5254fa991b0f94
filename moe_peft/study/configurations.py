# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a study runs: gin files with their seeds and grids."""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
from pathlib import Path
import shutil

from moe_peft.experts import bank_gin
from moe_peft.study import records
from moe_peft.study import run_rows
from moe_peft.study import tuning

# What `StudyRun.arguments` sets.
GIVEN = {'MODEL_DIR', 'BASE_RESULTS_DIR', 'SEED', 'EVAL_SPLIT'}
# Characters of the name of a bank's folder, which joins the experts' names.
_LONGEST = 200


@dataclasses.dataclass(frozen=True)
class StudyOptions:
  """What the command line says about a study.

  Attributes:
    folder: Folder of gin files, or of folders of them, by path or by the name
      it ships under.
    out: Where the runs lie.
    results: Where records and tables lie.
    seeds: Seeds of all configurations; None leaves each its own.
    split: The split that the table scores.
    only: Names of the gin files that run; empty for all.
    tune: Values of macros to choose from, in the place of the files' TUNE.
    jobs: How many runs go on at a time.
    controls: Whether runs are scored with their routing replaced too.
    merge: Results of other machines, to be added; nothing runs then.
    reference: The gin file with which the table compares the others.
    gin_file: Gin files that are read after each one of the folder.
    gin_bindings: Bindings that are read last.
    gin_search_paths: Folders of gin files, with commas.
    trust_gin: Whether a `config.gin` among them is run as code.
  """

  folder: str
  out: Path
  results: Path
  seeds: Sequence[int] | None = None
  split: str = 'test'
  only: Sequence[str] = ()
  tune: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  jobs: int = 1
  controls: bool = False
  merge: Sequence[Path] = ()
  reference: str | None = None
  gin_file: Sequence[str] = ()
  gin_bindings: Sequence[str] = ()
  gin_search_paths: str = ''
  trust_gin: bool = False


@dataclasses.dataclass(frozen=True)
class Configuration:
  """A gin file of the study.

  Attributes:
    file: The file.
    folder: Where its runs lie.
    seeds: Its seeds.
    trials: Values to choose from; one entry if there is no choice.
    macros: Text of its macros, except those of single runs and of places.
    evaluates_more: Whether it evaluates tasks that it does not train on.
    plan: How the trials are made.
    declared_seeds: Those of the file, whatever --seeds says.
    bank_of: The files whose runs are the experts of its bank; none for most.
    base: The base of that bank.
    depth: How many files must have been trained before, one over the other.
  """

  file: Path
  folder: Path
  seeds: Sequence[int]
  trials: Sequence[records.Values]
  macros: Mapping[str, str]
  evaluates_more: bool
  plan: tuning.Plan = tuning.Plan()
  declared_seeds: Sequence[int] = ()
  bank_of: Sequence[str] = ()
  base: str | None = None
  depth: int = 0

  @property
  def name(self) -> str:
    return self.file.stem

  def trial(self, trial: tuning.Trial) -> 'StudyRun':
    """The run of a trial, by default with the first seed of the table."""
    folder = self.folder / 'tuning'
    if trial.seed is not None:
      folder /= f'steps{trial.steps}-seed{trial.seed}'
    seed = self.seeds[0] if trial.seed is None else trial.seed
    return StudyRun(
        self, seed, 'validation', trial.values,
        folder / records.text(trial.values), trial.steps,
    )

  def run(self, seed: int, values: records.Values, split: str) -> 'StudyRun':
    """The run of a seed that the table counts."""
    return StudyRun(self, seed, split, values, self.folder / f'seed{seed}')


@dataclasses.dataclass(frozen=True)
class StudyRun:
  """One training run.

  Attributes:
    configuration: The configuration that it trains.
    seed: Its seed.
    split: The split that it scores.
    values: Values of the macros that are tuned.
    folder: MODEL_DIR.
    steps: TRAIN_STEPS, if they are not those of the file.
  """

  configuration: Configuration
  seed: int
  split: str
  values: records.Values
  folder: Path
  steps: int | None = None

  @property
  def experts(self) -> dict[str, Path]:
    """The runs that its bank is made of, by name."""
    out = self.configuration.folder.parent
    return {
        name: out / name / f'seed{self.seed}'
        for name in self.configuration.bank_of
    }

  @property
  def bank(self) -> Path | None:
    """Where its bank lies, which runs over the same experts share, or None."""
    name = '+'.join(self.configuration.bank_of)
    if not name:
      return None
    if len(name) > _LONGEST:
      name = hashlib.sha256(name.encode()).hexdigest()
    out = self.configuration.folder.parent / 'banks'
    return out / name / f'seed{self.seed}' / 'bank'

  def note_values(self) -> None:
    """Notes its tuned values beside its folder, as long as that is there.

    Raises:
      errors.UserError: If the folder was begun with others, which were the best
        of the grid then.
    """
    if not self.values:
      return
    note = self.folder.with_name(f'{self.folder.name}.json')
    if not self.folder.exists():
      note.unlink(missing_ok=True)
    records.check_macros(note, self.values)

  def take_over(self, trial: 'StudyRun') -> None:
    """Begins with what a trial of the same values has trained.

    Scores are left behind: they are of another split. Nothing is done if the
    trial is missing or of another seed, as with other `--seeds` than before, or
    if its checkpoints have been removed.
    """
    if self.folder.exists() or run_rows.seed(trial.folder) != self.seed:
      return
    parts = 'checkpoints', 'metrics', 'tensorboard'
    if not all((trial.folder / part).is_dir() for part in parts):
      return
    partial = self.folder.with_suffix('.partial')
    shutil.rmtree(partial, ignore_errors=True)
    for part in parts:
      shutil.copytree(
          trial.folder / part,
          partial / part,
          ignore=shutil.ignore_patterns('eval.jsonl'),
      )
    partial.rename(self.folder)

  def arguments(self, options: StudyOptions) -> list[str]:
    """Arguments of `python -m moe_peft.train`."""
    # Runs of one base share its scores.
    base_results = self.configuration.folder.parent / 'base_results'
    bindings = [
        f'MODEL_DIR={str(self.folder)!r}',
        f'BASE_RESULTS_DIR={str(base_results)!r}',
        f'SEED={self.seed}',
        f'EVAL_SPLIT={self.split!r}',
        *options.gin_bindings,
        *(f'{name}={value}' for name, value in self.values.items()),
        *([f'TRAIN_STEPS={self.steps}'] if self.steps else []),
    ]
    if self.split == 'validation' and self.configuration.evaluates_more:
      # Held-out tasks choose nothing, so a trial need not score them.
      bindings.append('EVAL_MIXTURE_OR_TASK_NAME=None')
    files = [self.configuration.file, *options.gin_file]
    if self.bank is not None:
      files.append(self.bank / bank_gin.FILE)  # It is read last.
    return [
        *(f'--gin_file={name}' for name in files),
        f'--gin_search_paths={options.gin_search_paths}',
        *(['--trust_gin'] if options.trust_gin else []),
        *(f'--gin.{binding}' for binding in bindings),
    ]
