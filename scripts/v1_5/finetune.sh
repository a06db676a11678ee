#!/usr/bin/env bash
# LLaVA-1.5, stage 2: visual instruction tuning of the whole model.   scripts/v1_5/finetune.sh [more flags]
set -euo pipefail
DEEPSPEED=${DEEPSPEED-scripts/zero3.json}
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

# BATCH is per process; LLaVA: 8 processes, 128 together
launch "${LLAVA[@]}" \
    --version "${VERSION:-v1}" \
    --data_path "${DATA:-playground/data/llava_v1_5_mix665k.json}" \
    --image_folder "${IMAGES:-playground/data}" \
    --pretrain_mm_mlp_adapter "${ADAPTER:-checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin}" \
    --image_aspect_ratio pad \
    --group_by_modality_length True \
    --output_dir "${OUTPUT:-checkpoints/llava-v1.5-13b}" \
    --per_device_train_batch_size "${BATCH:-16}" \
    --save_steps "${SAVE_STEPS:-50000}" \
    --learning_rate "${LR:-2e-5}" \
    "$@"
