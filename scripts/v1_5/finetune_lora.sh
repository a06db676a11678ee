#!/usr/bin/env bash
# LLaVA-1.5, stage 2 with LoRA adapters.   scripts/v1_5/finetune_lora.sh [more flags]
set -euo pipefail
HERE=$(dirname "${BASH_SOURCE[0]}")
export LR=${LR:-2e-4} OUTPUT=${OUTPUT:-checkpoints/llava-v1.5-13b-lora}
exec bash "$HERE/finetune.sh" \
    --lora_enable True \
    --lora_r "${LORA_R:-128}" \
    --lora_alpha "${LORA_ALPHA:-256}" \
    --mm_projector_lr "${PROJECTOR_LR:-2e-5}" \
    "$@"
