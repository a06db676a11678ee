#!/usr/bin/env bash
# LLaVA-1.5, stage 1: align the projector with the language model.   scripts/v1_5/pretrain.sh [more flags]
set -euo pipefail
DEEPSPEED=${DEEPSPEED-scripts/zero2.json}
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

# BATCH is per process; LLaVA: 8 processes, 256 together
launch "${LLAVA[@]}" \
    --version "${VERSION:-plain}" \
    --data_path "${DATA:-playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json}" \
    --image_folder "${IMAGES:-playground/data/LLaVA-Pretrain/images}" \
    --tune_mm_mlp_adapter True \
    --output_dir "${OUTPUT:-checkpoints/llava-v1.5-13b-pretrain}" \
    --per_device_train_batch_size "${BATCH:-32}" \
    --save_steps "${SAVE_STEPS:-24000}" \
    --learning_rate "${LR:-1e-3}" \
    "$@"
