# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m moe_peft save_base`: a run's parameters as a base for others."""

from collections.abc import Sequence

from moe_peft.cli import flags


def main(argv: Sequence[str]) -> int | None:
  """Parses the command line and writes the base."""
  parser = flags.make_parser(
      'moe_peft save_base',
      'Writes the newest parameters of a run without its adapters, in '
      'bfloat16, as OUT/model.safetensors; OUT then serves as '
      'INITIAL_CHECKPOINT_PATH.',
      'runs/pretrained bases/mine',
  )
  parser.add_argument('run', metavar='RUN', help='MODEL_DIR of the run')
  parser.add_argument(
      'out', metavar='OUT', type=flags.output_folder, help='folder to write'
  )
  parser.add_argument(
      '--t5x', action='store_true',
      help='write OUT/checkpoint_0, which T5X restores too',
  )
  flags.add_force_flag(parser)
  flags.add_gin_flags(parser)
  args = parser.parse_args(argv)
  flags.load_run(args)
  from moe_peft.training import restored

  return restored.save_base(args.out, args.force, args.t5x)
