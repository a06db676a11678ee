#!/usr/bin/env bash
# Small-LLaVA: LLaVA's two stages on SmolLM2-135M-Instruct, then exit gates, evaluation and packing, by the project's own
# training scripts. What is finished is kept, and an interrupted stage resumes from its newest checkpoint: run the same
# command again. To start anew, remove OUT.
#
#   FOR                gpu or cpu (2 cores, hours; the default where there is no GPU)
#   BASE               language model that scripts/small/get.sh wrote (checkpoints/small/base)
#   OUT, DATA          models (checkpoints/small) and data (playground/data/small)
#   TOWER              vision tower (Tiny-LLaVA's)
#   SCENES, PROCESSES, SEED                        of the data
#   PROJECTOR_STEPS, LORA_STEPS                    of the stages: captions, conversations
#   NPROC, BATCH, WORKERS                          training processes, samples of each at a time, loading processes
#   ACCUMULATION                                   batches of a process in a step (1; on a CPU 2)
#   MAX_LENGTH         most tokens of a conversation (768); longer ones are cut
#   LORA_R             rank of the adapter (16: 10 MB)
#   GATE_FRACTION      share of the conversations that gates are fitted to
#   GATE_WIDTH, GATE_EPOCHS                        their width (64), and passes over these conversations (10)
#   HELDOUT            held-out questions of each of the 17 kinds
#   SAVE_STEPS         steps between checkpoints (20)
#   UNTIL              last step to run: projector, lora, pack or gates (all, and then the evaluation)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../project.sh"
cd "$root"
export PYTHON HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
BASE=${BASE:-checkpoints/small/base}
OUT=${OUT:-checkpoints/small}
DATA=${DATA:-playground/data/small}
TOWER=${TOWER:-playground/tiny/model/vision_tower}
SEED=${SEED:-0}
VERSION=chatml_direct # the template that the language model was tuned with, in LLaVA's words
if [ -z "${FOR:-}" ]; then
    FOR=$("$PYTHON" -c 'import torch; print("gpu" if torch.cuda.is_available() else "cpu")')
fi
case $FOR in
gpu) # one card
    defaults=(40000 1000 4000 1 64 8 0.1 100)
    device=()
    compiled=()
    ;;
cpu) # in bfloat16, which CPUs with AMX multiply about ten times faster than float32
    defaults=(20000 800 2000 2 2 0 0.02 20)
    export ACCUMULATION=${ACCUMULATION:-2}
    device=(--use_cpu True)
    compiled=()
    if command -v "${CXX:-g++}" >/dev/null; then
        # each layer, its attention with it: half the time of a step, after a minute of compiling
        compiled=(--torch_compile True --attn_implementation eager)
        export ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION=true
    else
        echo "train.sh: there is no C++ compiler (g++, or CXX), so a step takes twice the time" >&2
    fi
    # glibc returns freed memory to the system after every step and faults it in again. Small blocks are kept instead, and
    # large ones come in huge pages. At 4 samples at a time a process grows to 12 GB within 300 steps.
    export MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=1073741824 GLIBC_TUNABLES=glibc.malloc.hugetlb=1
    ;;
*)
    echo "train.sh: FOR must be gpu or cpu, not $FOR" >&2
    exit 2
    ;;
esac
SCENES=${SCENES:-${defaults[0]}}
PROJECTOR_STEPS=${PROJECTOR_STEPS:-${defaults[1]}}
LORA_STEPS=${LORA_STEPS:-${defaults[2]}}
export NPROC=${NPROC:-${defaults[3]}} BATCH=${BATCH:-${defaults[4]}} WORKERS=${WORKERS:-${defaults[5]}}
export MAX_LENGTH=${MAX_LENGTH:-768}
GATE_FRACTION=${GATE_FRACTION:-${defaults[6]}}
HELDOUT=${HELDOUT:-${defaults[7]}}

# finish_at STAGE: leave here if this was the last stage to run.
finish_at() { if [ "${UNTIL:-}" = "$1" ]; then exit 0; fi; }

# stage SCRIPT STEPS FLAGS...: one of LLaVA's stages; further settings are in the environment.
stage() {
    local script=$1 steps=$2
    shift 2
    MODEL=$BASE VISION_TOWER=$TOWER IMAGES=$images DEEPSPEED='' CHECKPOINTING=False BF16=True \
        SAVE_STEPS=${SAVE_STEPS:-20} bash "scripts/v1_5/$script.sh" --max_steps "$steps" --seed "$SEED" \
        --adam_beta2 0.98 --image_aspect_ratio pad --ddp_find_unused_parameters False "${device[@]}" "${compiled[@]}" "$@"
}

# fit_gates: one pass of the model stores states and labels, which all epochs then share; both resume.
fit_gates() {
    "$PYTHON" -m dyvte.gates.store_states --model-path "$OUT/model" --version "$VERSION" --dtype bfloat16 \
        --data-path "$OUT/gates.json" --image-folder "$images" --model-max-length "$MAX_LENGTH" \
        --batch-size 8 --shard-size 32 --output "$OUT/store"
    "$PYTHON" -m dyvte.gates.fit --store "$OUT/store" --output_dir "$OUT/gates" \
        --width "${GATE_WIDTH:-64}" --gain 0.1 --learning_rate 1e-3 --num_train_epochs "${GATE_EPOCHS:-10}" \
        --per_device_train_batch_size 32 --lr_scheduler_type cosine --warmup_ratio 0.03 --weight_decay 0. \
        --group_by_modality_length True --logging_steps 10 --seed "$SEED" --report_to none
}

if [ ! -f "$BASE/config.json" ]; then
    echo "train.sh: there is no language model in $BASE: run scripts/small/get.sh" >&2
    exit 1
fi
make "$DATA/finetune.json" "$PYTHON" -m dyvte.tiny.data --out "$DATA" --scenes "$SCENES" --seed "$SEED" \
    --processes "${PROCESSES:-2}" --spoken
make "$DATA/eval/heldout/questions.jsonl" "$PYTHON" -m dyvte.tiny.sets --out "$DATA/eval" --only heldout \
    --heldout "$HELDOUT"

images=$DATA/images
rank=${LORA_R:-16}
OUTPUT=$OUT/projector DATA=$DATA/pretrain.json LR=1e-3 \
    make "$OUT/projector/mm_projector.bin" stage pretrain "$PROJECTOR_STEPS"
finish_at projector
OUTPUT=$OUT/lora ADAPTER=$OUT/projector/mm_projector.bin DATA=$DATA/finetune.json VERSION=$VERSION LR=8e-4 \
    PROJECTOR_LR=8e-4 LORA_R=$rank LORA_ALPHA=$((2 * rank)) \
    make "$OUT/lora/non_lora_trainables.bin" stage finetune_lora "$LORA_STEPS" --lora_dropout 0.
finish_at lora

make "$OUT/parts/config.json" "$PYTHON" -m dyvte.small.pack --lora "$OUT/lora" --tower "$TOWER" --out "$OUT/parts"
make "$OUT/model/config.json" "$PYTHON" scripts/merge_lora_weights.py --model-path "$OUT/parts" --model-base "$BASE" \
    --save-model-path "$OUT/model"
finish_at pack
make "$OUT/gates.json" "$PYTHON" -m dyvte.gates.sample --data-path "$DATA/finetune.json" --output "$OUT/gates.json" \
    --fraction "$GATE_FRACTION" --seed "$SEED"
make "$OUT/gates/gates.json" fit_gates
finish_at gates
make "$OUT/accuracy.json" "$PYTHON" -m dyvte.tiny.evaluate --model-path "$OUT/model" --data "$DATA/eval/heldout" \
    --conv-mode "$VERSION" --out "$OUT/accuracy" --dtype bfloat16
make "$OUT/knowledge.json" "$PYTHON" -m dyvte.small.knowledge --models "$BASE" "$OUT/model" --out "$OUT/knowledge"
"$PYTHON" -m dyvte.small.card --folder "$OUT" --machine "${MACHINE:-this machine ($FOR)}" --card "$OUT/README.md"
