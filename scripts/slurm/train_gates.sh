#!/usr/bin/env bash
# Train exit gates on several nodes, with one launcher on each node and one process for each GPU.
#
#   cd PROJECT; MODEL=liuhaotian/llava-v1.5-7b DATA=gates.json sbatch --nodes 2 scripts/slurm/train_gates.sh [more flags]
#
# Settings are those of scripts/v1_5/finetune_visual_gate.sh; TRAIN names another script of that folder, such as
# finetune.sh. The project's folder, its environment, the data and OUTPUT must be on a disk that all nodes see.
#SBATCH --job-name=dyvte-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail
# sbatch runs a copy of this file, in the folder from which it was submitted
train=scripts/v1_5/${TRAIN:-finetune_visual_gate.sh}
if [[ ! -f $train ]]; then
    echo "$train is not here: call sbatch in the project's folder" >&2
    exit 2
fi
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
# the first host; jobs that share a node get different ports
export MASTER_ADDR=${hosts%%$'\n'*} NNODES=$SLURM_NNODES MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
# a job that was requeued goes on from its newest checkpoint
# shellcheck disable=SC2016 # each task has its own SLURM_NODEID
srun --kill-on-bad-exit=1 bash -c 'NODE_RANK=$SLURM_NODEID exec bash "$@"' "$0" "$train" "$@"
