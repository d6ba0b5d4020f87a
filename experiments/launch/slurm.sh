#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One run on several nodes of a SLURM cluster, from the root of the repository:
#
#   sbatch --nodes=2 experiments/launch/slurm.sh WORKDIR --config=FILE ...
#
# WORKDIR is a folder that every node sees. There is one process a GPU, which is
# what JAX expects of SLURM; it finds out by itself who is who. Weights that are
# too large for a GPU are shared by those of a node with
# --config.sharding.model=8, see docs/pods.md. Two minutes before its time is
# over, or when it is preempted, the run gets SIGTERM, saves and leaves; the job
# then queues again and continues. Errors end the job.
#
#SBATCH --job-name=ctrl-jax
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

workdir=${1:?"usage: sbatch slurm.sh WORKDIR --config=FILE ..."}
shift

srun "${PYTHON:-.venv/bin/python}" -m experiments.run --distributed \
  --workdir="$workdir" "$@"

if [[ ! -e $workdir/results.json ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
