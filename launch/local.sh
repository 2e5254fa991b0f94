#!/usr/bin/env bash
# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/local.sh [options] -- COMMAND [ARG ...]

Runs COMMAND in several processes on this machine, as one JAX program over
several hosts. T5X is told by its own flags:

  launch/local.sh --t5x -- python -m t5x.train --gin_file=configs/...

A program of your own finds its place in the environment (MOE_PEFT_COORDINATOR,
MOE_PEFT_NUM_PROCESSES, MOE_PEFT_PROCESS_ID) and calls
jax.distributed.initialize with it. python -m moe_peft.train does not: it is for
one process.

  --processes N   processes (default 2)
  --devices N     CPU devices of each process (default 4)
  --port N        port of the coordinator (default: a free one)
  --logs DIR      write DIR/process_N.log instead of prefixed lines
  --t5x           append --multiprocess_gpu, --coordinator_address,
                  --process_count and --process_index to COMMAND
  --accelerator   leave the devices to JAX instead of making CPU devices
  --dry-run       print what would be run
  --help          this text

If one process fails, the others are stopped and its status is returned.
TEXT
}

die() {
  echo "error: $1 See launch/local.sh --help." >&2
  exit 2
}

number() {
  [[ $2 =~ ^[1-9][0-9]*$ ]] || die "$1 $2: give a number of at least 1."
}

processes=2 devices=4 port='' logs='' t5x='' accelerator='' dry_run=''
while (($#)); do
  case $1 in
    --processes | --devices | --port)
      (($# > 1)) || die "$1 needs a value."
      number "$1" "$2"
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    --logs)
      (($# > 1)) || die "$1 needs a value."
      logs=$2
      shift
      ;;
    --t5x) t5x=1 ;;
    --accelerator) accelerator=1 ;;
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

if [[ -z $port ]]; then
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("", 0))
print(s.getsockname()[1])')
fi
coordinator=127.0.0.1:$port
environment=(
  "MOE_PEFT_COORDINATOR=$coordinator"
  "MOE_PEFT_NUM_PROCESSES=$processes"
)
if [[ -z $accelerator ]]; then
  flag=--xla_force_host_platform_device_count
  # The last flag of a name wins; drop what was set before all the same.
  others=$(sed -E "s/$flag=[0-9]+//g" <<<"${XLA_FLAGS:-}")
  environment+=(
    JAX_PLATFORMS=cpu
    JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo
    "XLA_FLAGS=${others:+$others }$flag=$devices"
  )
fi

start() {
  local id=$1
  shift
  local command=(env "${environment[@]}" "MOE_PEFT_PROCESS_ID=$id" "$@")
  if [[ -n $t5x ]]; then
    command+=(
      --multiprocess_gpu
      "--coordinator_address=$coordinator"
      "--process_count=$processes"
      "--process_index=$id"
    )
  fi
  if [[ -n $dry_run ]]; then
    printf '%q ' "${command[@]}"
    echo
  elif [[ -n $logs ]]; then
    exec "${command[@]}" >"$logs/process_$id.log" 2>&1
  else
    exec "${command[@]}" > >(sed -u "s/^/[$id] /") 2>&1
  fi
}

if [[ -n $dry_run ]]; then
  for ((id = 0; id < processes; id++)); do start "$id" "$@"; done
  exit 0
fi

[[ -z $logs ]] || mkdir -p "$logs"
pids=()

# A process that waits for a lost one may not heed SIGTERM.
stop() {
  kill "${pids[@]}" 2>/dev/null || return 0
  for ((second = 0; second < 20; second++)); do
    sleep 1
    kill -0 "${pids[@]}" 2>/dev/null || return 0
  done
  kill -KILL "${pids[@]}" 2>/dev/null || true
}

trap 'stop; exit 143' INT TERM
for ((id = 0; id < processes; id++)); do
  start "$id" "$@" &
  pids+=($!)
done
status=0
for ((left = processes; left > 0; left--)); do
  wait -n || {
    status=$?
    echo "error: a process ended with status $status; stopping all." >&2
    stop
    break
  }
done
wait
exit "$status"
