#!/usr/bin/env bash
# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/tpu_vm.sh create|setup|status|delete --name NAME [options]
       launch/tpu_vm.sh run|resume --name NAME [options] -- COMMAND [ARG ...]

A Cloud TPU slice, from the request to the end:

  create   request the slice and wait until it is there
  setup    copy the committed files of this checkout (git HEAD) to all workers
           and install them, with T5X, into a Python 3.11 environment
  run      run COMMAND on all workers, e.g. python -m t5x.train ...
  resume   run COMMAND from wherever the slice stands: wait for a request that
           is in the queue, replace one that failed or was preempted, set up,
           run; until COMMAND succeeds, or fails on a slice that is still
           there, or five attempts to set that up have failed
  status   state of the slice
  delete   give the slice back

  --name NAME      name of the queued resource and of its node
  --zone ZONE      zone (default: that of gcloud's configuration)
  --project ID     project (default: that of gcloud's configuration)
  --type TYPE      accelerator type (default v5litepod-32)
  --runtime VER    runtime version (default v2-alpha-tpuv5-lite)
  --spot           ask for spot capacity
  --attempts N     resume: give up after N requests (default 50); the pause
                   after one that is refused doubles up to a quarter of an hour
  --dry-run        print the commands instead of running them
  --help           this text

Checkpoints must be in a bucket (MODEL_DIR=gs://...): a slice keeps nothing.
COMMAND gets T5X's flag --multiprocess_gpu, by which T5X calls
jax.distributed.initialize; on TPUs JAX finds the coordinator by itself.
TEXT
}

die() {
  echo "error: $1 See launch/tpu_vm.sh --help." >&2
  exit 2
}

case ${1:-} in
  create | setup | run | resume | status | delete) action=$1 ;;
  --help | -h)
    usage
    exit 0
    ;;
  *) die "'${1:-}' is none of create, setup, run, resume, status, delete." ;;
esac
shift

name='' type=v5litepod-32 runtime=v2-alpha-tpuv5-lite attempts=50
spot=() place=() dry_run=''
while (($#)); do
  case $1 in
    --name | --type | --runtime | --attempts)
      [[ -n ${2:-} ]] || die "$1 needs a value."
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    --zone | --project)
      [[ -n ${2:-} ]] || die "$1 needs a value."
      place+=("$1=$2")
      shift
      ;;
    --spot) spot=(--spot) ;;
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
[[ -n $name ]] || die 'Give --name.'
[[ $attempts =~ ^[1-9][0-9]*$ ]] || die "--attempts $attempts: give a number."
case $action in
  run | resume) (($#)) || die 'Give a command after --.' ;;
  *) (($# == 0)) || die "$action takes no command." ;;
esac

call() {
  if [[ -n $dry_run ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

queue() { # The verb and its flags.
  local verb=$1
  shift
  call gcloud compute tpus queued-resources "$verb" "$name" "${place[@]}" "$@"
}

# One of the queue's states, ABSENT, or UNKNOWN if gcloud could not tell.
state() {
  local answer
  if answer=$(queue describe --format='value(state.state)' 2>&1); then
    echo "$answer"
  elif [[ $answer == *NOT_FOUND* ]]; then
    echo ABSENT
  else
    echo UNKNOWN
  fi
}

on_all_workers() {
  call gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=all \
    --command="$1"
}

request() {
  queue create --node-id="$name" --accelerator-type="$type" \
    --runtime-version="$runtime" "${spot[@]}"
}

create() {
  request || return
  [[ -z $dry_run ]] || return 0
  local now
  until now=$(state) && [[ $now == ACTIVE ]]; do
    echo "$name: $now"
    case $now in FAILED | SUSPENDED | ABSENT) return 1 ;; esac
    sleep 30
  done
}

setup() {
  local folder
  folder=$(mktemp --directory)
  call git -C "$(dirname "$0")/.." archive --format=tar.gz \
    --output="$folder/moe_peft.tar.gz" HEAD &&
    call gcloud compute tpus tpu-vm scp "$folder/moe_peft.tar.gz" "$name:" \
      "${place[@]}" --worker=all || return
  rm -r "$folder"
  # shellcheck disable=SC2016  # The workers expand it.
  on_all_workers 'set -e
rm -rf moe_peft && mkdir moe_peft && tar xzf moe_peft.tar.gz -C moe_peft
pip3 install --quiet --user uv
~/.local/bin/uv venv --quiet --python 3.11 moe_peft/env
VIRTUAL_ENV=$HOME/moe_peft/env ~/.local/bin/uv pip install --quiet \
  -e "./moe_peft[tpu,t5x,tokenizers]"
VIRTUAL_ENV=$HOME/moe_peft/env ~/.local/bin/uv pip install --quiet --no-deps \
  -r moe_peft/requirements/t5x.txt
touch moe_peft/env/ready'
}

is_set_up() {
  on_all_workers 'test -e moe_peft/env/ready' 2>/dev/null
}

run() {
  local command
  printf -v command '%q ' "$@" --multiprocess_gpu
  on_all_workers "cd moe_peft && . env/bin/activate && $command"
}

delete() {
  queue delete --force --quiet
}

# Runs COMMAND on the slice that is there. Returns 1 if the slice was lost, or
# takes no connection yet.
run_here() {
  if is_set_up || setup; then
    if run "$@"; then exit 0; fi
    # Notice of a preemption can come later than the broken connection.
    sleep 60
    [[ $(state) != ACTIVE ]] ||
      die 'The command failed and the slice is still there: see its output.'
  elif ((++failed_setups == 5)); then
    die 'Setting up failed five times and the slice is still there.'
  fi
  return 1
}

resume() {
  if [[ -n $dry_run ]]; then
    create && setup && run "$@"
    return
  fi
  local requests=0 failed_setups=0 pause=30 now
  while true; do
    now=$(state)
    echo "$name: $now, $requests of at most $attempts requests"
    case $now in
      ACTIVE)
        pause=30
        run_here "$@" || sleep "$pause"
        continue
        ;;
      FAILED | SUSPENDED) delete && continue ;;
      ABSENT)
        ((requests < attempts)) || die "Gave up after $requests requests."
        ((++requests))
        failed_setups=0
        request && continue
        ;;
      UNKNOWN) ;; # gcloud failed: ask again, ever less often.
      *) # In the queue, in the making or on its way out.
        sleep 30
        continue
        ;;
    esac
    sleep "$pause"
    pause=$((pause < 450 ? pause * 2 : 900))
  done
}

case $action in
  status) queue describe ;;
  *) "$action" "$@" ;;
esac
