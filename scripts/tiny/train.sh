#!/usr/bin/env bash
# Tiny-LLaVA from nothing: data, tokenizer, base model, vision tower, then LLaVA's two stages, evaluation and packing.
# What is finished is kept, and an interrupted stage resumes from its newest checkpoint; to start anew, remove OUT.
#
#   OUT, DATA        models (checkpoints/tiny) and data (playground/data/tiny)    SCENES, PROCESSES, SEED   of the data
#   TOWER_STEPS, TOWER_DISTORTED_STEPS   of the tower's two runs     HIDDEN, LAYERS, HEADS, WIDTH     shape of the language model
#   PRETRAIN_EPOCHS, PRETRAIN_BATCH, PRETRAIN_LR      stage 1: captions, the whole language model trained
#   FINETUNE_EPOCHS, FINETUNE_BATCH, FINETUNE_LR      stage 2: conversations
#   VERSION          template of stage 2 (vicuna_v1_nosys)          TRAIN_FLAGS   more flags for both stages
#   PACK             folder of the finished model (OUT/model); playground/tiny/model is the one shipped
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
if [ -z "${PYTHON:-}" ]; then
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python; fi
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
OUT=${OUT:-checkpoints/tiny}
DATA=${DATA:-playground/data/tiny}
SEED=${SEED:-0}
PROCESSES=${PROCESSES:-2}
VERSION=${VERSION:-vicuna_v1_nosys}
PACK=${PACK:-$OUT/model}
read -ra more <<<"${TRAIN_FLAGS:-}"

# make FILE COMMAND...: run the command unless the file, which it writes last, is there.
make() {
    local file=$1
    shift
    if [ -f "$file" ]; then
        echo "kept: $file"
    else
        echo "making: $file"
        "$@"
    fi
}

# stage NAME MODEL TEMPLATE DATA EPOCHS BATCH LR: one run of llava.train.train into OUT/NAME.
stage() {
    make "$OUT/$1/model.safetensors" "$PYTHON" -m llava.train.train \
        --model_name_or_path "$2" --version "$3" --data_path "$4" --image_folder "$DATA/images" \
        --vision_tower "$OUT/tower" --mm_projector_type mlp2x_gelu --mm_vision_select_layer -2 \
        --mm_use_im_start_end False --mm_use_im_patch_token False --image_aspect_ratio pad \
        --output_dir "$OUT/$1" --num_train_epochs "$5" --per_device_train_batch_size "$6" --learning_rate "$7" \
        --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type cosine --max_grad_norm 1.0 --seed "$SEED" \
        --eval_strategy no --save_strategy steps --save_steps 500 --save_total_limit 1 --logging_steps 20 \
        --model_max_length 512 --dataloader_num_workers "${WORKERS:-0}" --lazy_preprocess True --report_to none \
        ${more[@]+"${more[@]}"}
}

mkdir -p "$OUT"
make "$DATA/finetune.json" "$PYTHON" -m dyvte.tiny.data --out "$DATA" --scenes "${SCENES:-40000}" \
    --seed "$SEED" --processes "$PROCESSES"
make "$DATA/eval/heldout/questions.jsonl" "$PYTHON" -m dyvte.tiny.sets --out "$DATA/eval"
make "$OUT/tokenizer/special_tokens_map.json" "$PYTHON" -m dyvte.tiny.tokenizer --data "$DATA" --out "$OUT/tokenizer"
make "$OUT/base/special_tokens_map.json" "$PYTHON" -m dyvte.tiny.base --tokenizer "$OUT/tokenizer" --out "$OUT/base" \
    --hidden "${HIDDEN:-128}" --layers "${LAYERS:-20}" --heads "${HEADS:-4}" --width "${WIDTH:-352}" --seed "$SEED"
make "$OUT/tower/preprocessor_config.json" "$PYTHON" -m dyvte.tiny.tower --out "$OUT/tower" \
    --steps "${TOWER_STEPS:-1200}" --distorted-steps "${TOWER_DISTORTED_STEPS:-400}" --seed "$SEED"
stage stage1 "$OUT/base" plain "$DATA/pretrain.json" \
    "${PRETRAIN_EPOCHS:-1}" "${PRETRAIN_BATCH:-32}" "${PRETRAIN_LR:-2e-3}"
stage stage2 "$OUT/stage1" "$VERSION" "$DATA/finetune.json" \
    "${FINETUNE_EPOCHS:-1}" "${FINETUNE_BATCH:-32}" "${FINETUNE_LR:-1e-3}"
make "$PACK/config.json" "$PYTHON" -m dyvte.tiny.pack --model "$OUT/stage2" --tower "$OUT/tower" \
    --tokenizer "$OUT/tokenizer" --out "$PACK"
make "$OUT/accuracy.json" "$PYTHON" -m dyvte.tiny.evaluate --model-path "$PACK" \
    --data "$DATA/eval/heldout" --conv-mode "$VERSION" --out "$OUT/accuracy"
