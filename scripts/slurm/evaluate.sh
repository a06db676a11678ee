#!/usr/bin/env bash
# Evaluate a benchmark on several nodes, with one task for each GPU, then merge and score.
#
#   cd PROJECT; MODEL=... METHOD=dyvte GATES=... sbatch --ntasks 16 scripts/slurm/evaluate.sh gqa [more flags]
#
# Settings are those of scripts/v1_5/eval/common.sh. The project's folder, its environment and OUT must be on a disk that
# all nodes see.
#SBATCH --job-name=dyvte-evaluate
#SBATCH --ntasks=16
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail
# sbatch runs a copy of this file, in the folder from which it was submitted
evaluate=scripts/v1_5/eval/${1:?name a benchmark, such as gqa}.sh
shift
if [[ ! -f $evaluate ]]; then
    echo "$evaluate is not here: call sbatch in the project's folder, with the name of a benchmark" >&2
    exit 2
fi
export CHUNKS=$SLURM_NTASKS
# a shard that a requeued job finds complete is not answered again
# shellcheck disable=SC2016 # each task has its own SLURM_PROCID
srun --kill-on-bad-exit=0 bash -c 'SHARDS=$SLURM_PROCID exec bash "$@"' "$0" "$evaluate" "$@"
SHARDS=none bash "$evaluate" "$@"
