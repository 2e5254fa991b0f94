#!/usr/bin/env bash
# Copyright 2026 The moe_peft Authors.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/gke.sh --image IMAGE [options] -- python -m t5x.train ARG ...
       launch/gke.sh --delete [--name NAME] [--namespace NS]

Runs a T5X command on one TPU slice of the Kubernetes cluster that kubectl
points to, as the JobSet launch/gke_jobset.yaml. The cluster needs the JobSet
controller and a node pool of that slice; the image needs moe_peft with the
extras tpu, t5x and tokenizers, and what requirements/t5x.txt names.

  --image IMAGE        container image
  --accelerator TYPE   node label (default tpu-v5-lite-podslice)
  --topology AxB       chips of the slice (default 4x8)
  --chips N            chips of each host (default 4)
  --name NAME          name of the JobSet (default moe-peft)
  --namespace NS       namespace (default default)
  --service-account A  Kubernetes service account (default default)
  --restarts N         restarts after a failure or preemption (default 100)
  --delete             delete the JobSet
  --dry-run            print the YAML instead of applying it
  --help               this text
TEXT
}

die() {
  echo "error: $1 See launch/gke.sh --help." >&2
  exit 2
}

image='' accelerator=tpu-v5-lite-podslice topology=4x8 chips=4 name=moe-peft
namespace=default service_account=default restarts=100 dry_run='' delete=''
while (($#)); do
  case $1 in
    --image | --accelerator | --topology | --chips | --name | --namespace | \
      --service-account | --restarts)
      [[ -n ${2:-} ]] || die "$1 needs a value."
      option=${1#--}
      printf -v "${option//-/_}" %s "$2"
      shift
      ;;
    --delete) delete=1 ;;
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

if [[ -n $delete ]]; then
  command=(kubectl delete jobset "$name" --namespace "$namespace")
  if [[ -n $dry_run ]]; then
    printf '%q ' "${command[@]}"
    echo
    exit 0
  fi
  exec "${command[@]}"
fi

(($#)) || die 'Give a command after --.'
[[ -n $image ]] || die 'Give --image.'
[[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] ||
  die "--topology $topology: write it as 4x8 or 2x2x4."
[[ $name =~ ^[a-z]([-a-z0-9]{0,40}[a-z0-9])?$ ]] ||
  die "--name $name: lower case letters, digits and - only, at most 42."
[[ $chips =~ ^[1-9][0-9]*$ && $restarts =~ ^[0-9]+$ ]] ||
  die '--chips and --restarts are numbers.'
total=$((${topology//x/*}))
((total % chips == 0)) ||
  die "--topology $topology has $total chips, not a multiple of --chips $chips."

render() {
  NAME=$name NAMESPACE=$namespace MAX_RESTARTS=$restarts IMAGE=$image \
    HOSTS=$((total / chips)) CHIPS=$chips SERVICE_ACCOUNT=$service_account \
    ACCELERATOR=$accelerator TOPOLOGY=$topology \
    python3 - "$(dirname "$0")/gke_jobset.yaml" "$@" <<'PYTHON'
import json, os, string, sys
numbers = ('MAX_RESTARTS', 'HOSTS', 'CHIPS')
values = {k: json.dumps(v) for k, v in os.environ.items()}
values |= {k: os.environ[k] for k in numbers}
values['COMMAND'] = json.dumps(sys.argv[2:])
lines = [
    line if line.startswith('#') else string.Template(line).substitute(values)
    for line in open(sys.argv[1], encoding='utf-8')
]
print(''.join(lines), end='')
PYTHON
}

# On TPUs, too, this flag of T5X means: call jax.distributed.initialize.
if [[ -n $dry_run ]]; then
  render "$@" --multiprocess_gpu
else
  render "$@" --multiprocess_gpu | kubectl apply -f -
fi
