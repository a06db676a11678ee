#!/usr/bin/env bash
# DyVTE: train the exit gates of a finished LLaVA model, the model itself frozen.
#
#   MODEL=liuhaotian/llava-v1.5-7b DATA=gates.json IMAGES=playground/data scripts/v1_5/finetune_visual_gate.sh
#
# Families that bring a chat template take no VERSION (LLaVA: v1). DATA is what `python -m dyvte.gates.sample` draws. GATES is a folder of gates to start from (init_weight.py makes
# one), or a hub name; without it, gates start from those in MODEL, or fresh. Settings are the paper's: one epoch, learning rate
# 4e-5, alpha 1.03, and GLOBAL_BATCH samples per step over all processes.
set -euo pipefail
DEEPSPEED=${DEEPSPEED-}
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

GLOBAL_BATCH=${GLOBAL_BATCH:-128}
BATCH=${BATCH:-16}   # per process and forward pass
PROCESSES=$((NPROC * ${NNODES:-1}))
if ((BATCH * PROCESSES > GLOBAL_BATCH)); then BATCH=$((GLOBAL_BATCH / PROCESSES)); fi
if ((BATCH < 1 || GLOBAL_BATCH % (BATCH * PROCESSES) != 0)); then
    echo "GLOBAL_BATCH=$GLOBAL_BATCH must be a multiple of BATCH x processes = $BATCH x $PROCESSES" >&2
    exit 2
fi

launch \
    --tune_visual_gates True \
    ${GATES:+--visual_gates "$GATES"} \
    --model_name_or_path "${MODEL:-liuhaotian/llava-v1.5-7b}" \
    ${VERSION:+--version "$VERSION"} \
    --data_path "${DATA:-playground/data/llava_v1_5_mix665k_gates.json}" \
    --image_folder "${IMAGES:-playground/data}" \
    --image_aspect_ratio "${ASPECT:-pad}" \
    --group_by_modality_length True \
    --gate_supervision "${SUPERVISION:-all}" \
    --gate_alpha "${ALPHA:-1.03}" \
    --output_dir "${OUTPUT:-checkpoints/llava-v1.5-7b-gates}" \
    --per_device_train_batch_size "$BATCH" \
    --gradient_accumulation_steps "$((GLOBAL_BATCH / (BATCH * PROCESSES)))" \
    --save_steps "${SAVE_STEPS:-10}" \
    --save_total_limit 2 \
    --learning_rate "${LR:-4e-5}" \
    --seed "${SEED:-42}" \
    "$@"
