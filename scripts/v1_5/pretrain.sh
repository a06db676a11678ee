#!/usr/bin/env bash
# LLaVA-1.5, stage 1: align the projector with the language model.   scripts/v1_5/pretrain.sh [more flags]
set -euo pipefail
DEEPSPEED=${DEEPSPEED-scripts/zero2.json}
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

BATCH=${BATCH:-32}   # per process; LLaVA: 8 processes, 256 together

launch \
    --model_name_or_path "${MODEL:-lmsys/vicuna-13b-v1.5}" \
    --version "${VERSION:-plain}" \
    --data_path "${DATA:-playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json}" \
    --image_folder "${IMAGES:-playground/data/LLaVA-Pretrain/images}" \
    --vision_tower "${VISION_TOWER:-openai/clip-vit-large-patch14-336}" \
    --mm_projector_type mlp2x_gelu \
    --tune_mm_mlp_adapter True \
    --mm_vision_select_layer -2 \
    --mm_use_im_start_end False \
    --mm_use_im_patch_token False \
    --bf16 "$BF16" \
    --output_dir "${OUTPUT:-checkpoints/llava-v1.5-13b-pretrain}" \
    --num_train_epochs "${EPOCHS:-1}" \
    --per_device_train_batch_size "$BATCH" \
    --gradient_accumulation_steps "${ACCUMULATION:-1}" \
    --eval_strategy no \
    --save_strategy steps \
    --save_steps "${SAVE_STEPS:-24000}" \
    --save_total_limit 1 \
    --learning_rate "${LR:-1e-3}" \
    --weight_decay 0. \
    --warmup_ratio 0.03 \
    --lr_scheduler_type cosine \
    --logging_steps 1 \
    --tf32 True \
    --model_max_length "${MAX_LENGTH:-2048}" \
    --gradient_checkpointing "${CHECKPOINTING:-True}" \
    --dataloader_num_workers "${WORKERS:-4}" \
    --lazy_preprocess True \
    --report_to "${REPORT_TO:-none}" \
    "$@"
