# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The notebook runs from its first cell to its last, with fewer steps."""

from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / 'notebooks' / 'routed_adapter.ipynb'


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
  # One device and one cache of compiled programs, as a user has.
  for variable in ('XLA_FLAGS', 'JAX_COMPILATION_CACHE_DIR'):
    monkeypatch.delenv(variable, raising=False)
  monkeypatch.setenv('MOE_PEFT_NOTEBOOK_STEPS', '25')
  monkeypatch.setenv('MOE_PEFT_NOTEBOOK_RUN', str(tmp_path / 'run'))
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  assert len(notebook.cells) == 15
  nbclient.NotebookClient(
      notebook, timeout=600, resources={'metadata': {'path': str(ROOT)}}
  ).execute()  # An exception in a cell is one here.
  outputs = [o for cell in notebook.cells for o in cell.get('outputs', ())]
  pictures = [o for o in outputs if 'image/png' in o.get('data', {})]
  assert len(pictures) == 3
  assert (tmp_path / 'run' / 'export' / 'adapter_config.json').exists()
