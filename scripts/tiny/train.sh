#!/usr/bin/env bash
# Tiny-LLaVA from nothing: data, tokenizer, base model, vision tower, then LLaVA's two stages, evaluation and packing.
# What is finished is kept, and an interrupted stage resumes from its newest checkpoint; to start anew, remove OUT.
#
#   OUT, DATA          models (checkpoints/tiny) and data (playground/data/tiny)
#   SCENES, PROCESSES, SEED                         of the data
#   TOWER_STEPS, TOWER_DISTORTED_STEPS              of the tower's two runs
#   HIDDEN, HEADS, WIDTH, SHALLOW, LAYERS           shape of the language model; it is trained SHALLOW layers deep and
#                                                   then grown to LAYERS (see dyvte/tiny/grow.py)
#   PRETRAIN_STEPS, FINETUNE_STEPS, GROWN_STEPS     of the stages: captions, questions, questions after growing
#   NPROC, BATCH       training processes (2), samples of each per step (8)
#   PACK               folder of the finished model (OUT/packed); playground/tiny/model is the one shipped
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../project.sh"
cd "$root"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
OUT=${OUT:-checkpoints/tiny}
DATA=${DATA:-playground/data/tiny}
SEED=${SEED:-0}
PROCESSES=${PROCESSES:-2}
VERSION=vicuna_v1_nosys
PACK=${PACK:-$OUT/packed}
NPROC=${NPROC:-2}
# glibc returns freed memory to the system after every step and faults it in again: keeping it doubles a CPU's speed.
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# stage NAME MODEL TEMPLATE DATA STEPS LR MUON_LR: one run of llava.train.train into OUT/NAME, all of the language model
# and the projector trained, the tower frozen.
stage() {
    make "$OUT/$1/model.safetensors" "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$NPROC" \
        -m llava.train.train \
        --model_name_or_path "$2" --version "$3" --data_path "$4" --image_folder "$DATA/images" \
        --vision_tower "$OUT/tower" --mm_projector_type mlp2x_gelu --mm_vision_select_layer -2 \
        --mm_use_im_start_end False --mm_use_im_patch_token False --image_aspect_ratio pad \
        --output_dir "$OUT/$1" --max_steps "$5" --per_device_train_batch_size "${BATCH:-8}" \
        --learning_rate "$6" --muon_lr "$7" --adam_beta2 0.98 --weight_decay 0. --warmup_steps 50 \
        --lr_scheduler_type cosine --seed "$SEED" --ddp_find_unused_parameters False \
        --eval_strategy no --save_strategy steps --save_steps 400 --save_total_limit 1 --logging_steps 20 \
        --model_max_length 512 --dataloader_num_workers "${WORKERS:-1}" --lazy_preprocess True --report_to none
}

mkdir -p "$OUT"
make "$DATA/finetune.json" "$PYTHON" -m dyvte.tiny.data --out "$DATA" --scenes "${SCENES:-40000}" \
    --seed "$SEED" --processes "$PROCESSES"
make "$DATA/eval/heldout/questions.jsonl" "$PYTHON" -m dyvte.tiny.sets --out "$DATA/eval" --only heldout
make "$OUT/tokenizer/special_tokens_map.json" "$PYTHON" -m dyvte.tiny.tokenizer --data "$DATA" --out "$OUT/tokenizer"
make "$OUT/base/special_tokens_map.json" "$PYTHON" -m dyvte.tiny.base --tokenizer "$OUT/tokenizer" --out "$OUT/base" \
    --hidden "${HIDDEN:-96}" --layers "${SHALLOW:-10}" --heads "${HEADS:-4}" --width "${WIDTH:-256}" --seed "$SEED"
make "$OUT/tower/preprocessor_config.json" "$PYTHON" -m dyvte.tiny.tower --out "$OUT/tower" \
    --steps "${TOWER_STEPS:-1200}" --distorted-steps "${TOWER_DISTORTED_STEPS:-400}" --seed "$SEED"
stage captions "$OUT/base" plain "$DATA/pretrain.json" "${PRETRAIN_STEPS:-600}" 2e-3 4e-3
stage shallow "$OUT/captions" "$VERSION" "$DATA/finetune.json" "${FINETUNE_STEPS:-9000}" 1.5e-3 4e-3
make "$OUT/grown/config.json" "$PYTHON" -m dyvte.tiny.grow --model "$OUT/shallow" --out "$OUT/grown" \
    --layers "${LAYERS:-20}" --seed "$SEED"
stage deep "$OUT/grown" "$VERSION" "$DATA/finetune.json" "${GROWN_STEPS:-1500}" 7e-4 2e-3
make "$PACK/config.json" "$PYTHON" -m dyvte.tiny.pack --model "$OUT/deep" --tower "$OUT/tower" \
    --tokenizer "$OUT/tokenizer" --out "$PACK"
make "$OUT/accuracy.json" "$PYTHON" -m dyvte.tiny.evaluate --model-path "$PACK" \
    --data "$DATA/eval/heldout" --conv-mode "$VERSION" --out "$OUT/accuracy" --device cpu
