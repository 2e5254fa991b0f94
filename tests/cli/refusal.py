# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""How a command must end that was given something wrong."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from moe_peft import __main__ as main
from moe_peft.cli import flags
from moe_peft.training import run
from tests.training import tiny


class Refusals:
  """Runs command lines in a folder of their own."""

  def __init__(self, folder: Path, monkeypatch, capsys):
    self.folder = folder
    self._monkeypatch, self._capsys = monkeypatch, capsys

  def write(self, name: str, content: str | bytes = '') -> None:
    """Writes a file into the folder."""
    path = self.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(content)

  def expect(self, args: Sequence[str], *names: str) -> str:
    """Expects status 2, at most three lines with the names, and no new file."""
    before = self._files()
    self._monkeypatch.chdir(self.folder)
    self._monkeypatch.setattr('sys.argv', ['moe-peft', *args])
    self._monkeypatch.setattr(run.scoring, 'evaluate', self._too_late)
    with pytest.raises(SystemExit) as ended:
      flags.run(main.dispatch)
    text = self._capsys.readouterr().err
    assert ended.value.code == 2, text
    said = text[text.index('error: ') :]
    assert 'Traceback' not in text and said.count('\n') <= 3, text
    for name in names:
      assert name in said, f'{name!r} is not in: {said}'
    assert self._files() == before, 'A file was written.'
    return said

  def _files(self) -> set[str]:
    return {str(path) for path in self.folder.rglob('*')}

  @staticmethod
  def _too_late(*args, **kwargs):
    pytest.fail('The base is evaluated before the error is found.')


@pytest.fixture
def refusals(tmp_path, monkeypatch, capsys) -> Refusals:
  return Refusals(tmp_path, monkeypatch, capsys)


def arguments(method: str = 'molora', **bindings: str) -> list[str]:
  """Arguments of `train` for a tiny experiment, with values as gin source."""
  sizes = {k: repr(v) for k, v in tiny.SIZES.items()}
  if method != 'molora':
    sizes.pop('NUM_EXPERTS')
    sizes.pop('SITES')
  values = {'MODEL_DIR': 'run', **sizes, **bindings}
  files = (
      'gin/models/tiny_t5.gin', f'gin/methods/{method}.gin',
      'gin/runs/finetune.gin',
  )
  return [
      *(f'--gin_file={file}' for file in files),
      *(f'--gin.{name}={value}' for name, value in values.items()),
  ]
