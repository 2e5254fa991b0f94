# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""The device, and what its vendor says that it can do at best."""

from collections.abc import Sequence
from typing import Any

import jax

from moe_peft.compile import topologies

# Dense bfloat16 TFLOP/s of one device, by JAX's `device_kind`; from the
# vendors' data sheets. Without bfloat16 no peak: a V100 has only float16.
PEAK_TFLOPS = {
    **{
        chip.device_kind: chip.peak_flops / 1e12
        for chip in topologies.CHIPS.values()
    },
    'NVIDIA A100-SXM4-40GB': 312.0,
    'NVIDIA A100-SXM4-80GB': 312.0,
    'NVIDIA L4': 121.0,
    'NVIDIA H100 80GB HBM3': 989.0,
    'NVIDIA H200': 989.0,
}


def describe(threads: int) -> str:
  """Name of the device; of CPUs also the number of threads."""
  device = jax.devices()[0]
  if device.platform == 'cpu':
    return f'{device.device_kind}, {threads} thread{"s"[: threads > 1]}'
  return f'{len(jax.devices())} x {device.device_kind}'


def add_rates(rows: Sequence[dict[str, Any]], num_devices: int = 1) -> None:
  """Adds `gflop_per_second`, and `share_of_peak` where the peak is known.

  Args:
    rows: With `fastest` and perhaps `gflop`, of all devices together.
    num_devices: Devices that the rows' programs run on.
  """
  peak = PEAK_TFLOPS.get(jax.devices()[0].device_kind)
  for row in rows:
    if row.get('gflop'):
      rate = row['gflop'] / row['fastest']
      row['gflop_per_second'] = rate
      if peak is not None:
        row['share_of_peak'] = rate / (1e3 * peak * num_devices)
