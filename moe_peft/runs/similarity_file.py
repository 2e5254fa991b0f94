# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`similarity.json`: how alike the experts of each site are."""

from collections.abc import Mapping
import dataclasses
from pathlib import Path

import numpy as np

from moe_peft.runs import json_file
from moe_peft.runs import site_names

FILE = 'similarity.json'


@dataclasses.dataclass(frozen=True)
class Similarity:
  """Cosines between what two experts add to a layer.

  Attributes:
    cosine: <float64>[num_experts, num_experts] by site; NaN for an expert that
      adds nothing and so has no direction.
  """

  cosine: Mapping[str, np.ndarray]

  def write(self, folder: Path) -> None:
    ordered = sorted(self.cosine, key=site_names.order)
    json_file.write(folder / FILE, {
        'sites': [site_names.describe(s, len(self.cosine[s])) for s in ordered],
        'cosine': [np.round(self.cosine[s], 5) for s in ordered],
    })


def read(folder: Path) -> Similarity | None:
  """The file of a run; None where there is none, as for one expert.

  Raises:
    errors.UserError: It is damaged.
  """
  if (fields := json_file.read(folder / FILE)) is None:
    return None
  return Similarity(fields.by_site('cosine', lambda n: (n, n)))
