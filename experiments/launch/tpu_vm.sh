#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One run on every host of a TPU pod, from your own computer:
#
#   export TPU=NAME ZONE=ZONE
#   experiments/launch/tpu_vm.sh setup URL                   # once
#   experiments/launch/tpu_vm.sh run WORKDIR --config=FILE ...
#
# URL is that of this repository; WORKDIR a folder that every host sees, such as
# a Filestore share. The pod, whose own Python is too old and gets a newer one
# beside it, comes from
#
#   gcloud compute tpus tpu-vm create $TPU --zone=$ZONE --spot \
#     --accelerator-type=v4-32 --version=tpu-ubuntu2204-base
#
# Weights that are too large for a chip are shared by the four of a host with
# --config.sharding.model=4, see docs/pods.md.
#
# A host that is taken away saves first, and all hosts leave. Create the pod
# again and give the same command: the run continues.
set -euo pipefail
: "${TPU:?name of the pod}" "${ZONE:?its zone}"

# Everywhere at once; each host is given the words of the command unchanged.
on_every_host() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
    --command="$1"
}

case ${1:-} in
  setup)
    url=${2:?URL of the repository}
    on_every_host "
      [ -d ctrl_jax ] || git clone -- $(printf %q "$url") ctrl_jax
      command -v python3.11 || {
        sudo add-apt-repository --yes ppa:deadsnakes/ppa
        sudo apt-get install --yes python3.11-venv
      }
      cd ctrl_jax && make setup PYTHON=python3.11 &&
      .venv/bin/uv pip install --python .venv/bin/python 'jax[tpu]' \
        --constraint requirements-lock.txt"
    ;;
  run)
    workdir=${2:?WORKDIR}
    shift 2
    run=(.venv/bin/python -m experiments.run --distributed)
    run+=(--workdir="$workdir" "$@")
    on_every_host "cd ctrl_jax && exec$(printf ' %q' "${run[@]}")"
    ;;
  *)
    echo "usage: tpu_vm.sh setup URL | run WORKDIR --config=FILE ..." >&2
    exit 2
    ;;
esac
