#!/usr/bin/env bash
# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/slurm.sh [options] -- python -m t5x.train ARG ...

Submits a T5X command to SLURM: one process for each GPU, which is what JAX
expects of SLURM; it finds the coordinator by itself. The job is put back into
the queue when it is preempted or reaches its time limit, and T5X continues
from the last checkpoint in MODEL_DIR.

  --nodes N       nodes (default 1)
  --gpus N        GPUs of each node (default 8)
  --cpus N        CPU cores of each process (default 8)
  --time T        time limit (default 24:00:00)
  --name NAME     name of the job (default moe_peft)
  --partition P   partition (default: the cluster's)
  --account A     account (default: yours)
  --env DIR       virtual environment to activate on the nodes
  --logs DIR      folder of the logs (default logs)
  --dry-run       print the batch script instead of submitting it
  --help          this text

Run it in the checkout, on a file system that all nodes share.
TEXT
}

die() {
  echo "error: $1 See launch/slurm.sh --help." >&2
  exit 2
}

nodes=1 gpus=8 cpus=8 time=24:00:00 name=moe_peft
partition='' account='' env='' logs=logs dry_run=''
while (($#)); do
  case $1 in
    --nodes | --gpus | --cpus)
      [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || die "$1 needs a number."
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    --time | --name | --partition | --account | --env | --logs)
      [[ -n ${2:-} && $2 != *$'\n'* ]] || die "$1 needs a value."
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    --dry-run) dry_run=1 ;;
    --help | -h)
      usage
      exit 0
      ;;
    --)
      shift
      break
      ;;
    *) die "Unknown option $1; write -- before the command." ;;
  esac
  shift
done
(($#)) || die 'Give a command after --.'

script() {
  cat <<TEXT
#!/usr/bin/env bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --gpus-per-node=$gpus
#SBATCH --ntasks-per-node=$gpus
#SBATCH --cpus-per-task=$cpus
#SBATCH --time=$time
#SBATCH --output=$logs/%x_%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
TEXT
  [[ -z $partition ]] || echo "#SBATCH --partition=$partition"
  [[ -z $account ]] || echo "#SBATCH --account=$account"
  cat <<'TEXT'
set -euo pipefail
# Five minutes before the time limit: stop the step and queue the job again.
trap 'scontrol requeue "$SLURM_JOB_ID"' USR1
TEXT
  [[ -z $env ]] || printf 'source %q\n' "$env/bin/activate"
  # srun does not take --cpus-per-task from the job since Slurm 22.05.
  printf 'srun --kill-on-bad-exit=1 --cpus-per-task=%q' "$cpus"
  printf ' %q' "$@" --multiprocess_gpu
  cat <<'TEXT'
 &
wait $!
TEXT
}

if [[ -n $dry_run ]]; then
  script "$@"
else
  mkdir -p "$logs"
  script "$@" | sbatch
fi
