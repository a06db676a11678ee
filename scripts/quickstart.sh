#!/usr/bin/env bash
# The whole method on the shipped Tiny-LLaVA, on a CPU: set up, make the data, train exit gates, evaluate with and
# without them, compare with every fixed exit layer. What is finished already is kept; to start anew, remove OUT.
#
#   MODEL, CONV_MODE   checkpoint (playground/tiny/model) and its conversation template (vicuna_v1_nosys)
#   OUT, SEED          folder of the results (outputs/quickstart); seed of gates, sample and training (0)
#   SCENES, FRACTION   training scenes to make (4000), and the share of them that gates train on (1)
#   QUESTIONS          of each benchmark (200)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
bash scripts/setup.sh
started=$SECONDS

export PYTHON=${VENV:-.venv}/bin/python HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# glibc returns freed memory to the system after every step and faults it in again: keeping it doubles a CPU's speed.
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592
export MODEL=${MODEL:-playground/tiny/model} CONV_MODE=${CONV_MODE:-vicuna_v1_nosys} BATCH_SIZE=16
work=${OUT:-outputs/quickstart}
SEED=${SEED:-0}
SCENES=${SCENES:-4000}
FRACTION=${FRACTION:-1}
QUESTIONS=${QUESTIONS:-200}
WIDTH=128 # of a gate; the paper's 2048 is for models that are 4096 wide
GAIN=0.1  # of fresh gates; Tiny-LLaVA's states are large, and with the paper's 1 its gates stay overconfident
benchmarks=(gqa pope textvqa)

step() { printf '\n[%d:%02d] %s\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)) "$*"; }

# once MARK COMMAND...: run the command unless it has finished before with the same words.
once() {
    local mark=$work/.done/$1
    shift
    if [ -f "$mark" ] && [ "$(cat "$mark")" = "$*" ]; then
        echo "kept from an earlier run"
        return
    fi
    "$@"
    mkdir -p "$(dirname "$mark")"
    echo "$*" >"$mark"
}

[ -f "$MODEL/config.json" ] || { echo "quickstart: no checkpoint in $MODEL" >&2; exit 1; }

step "Data: scenes with instructions, and evaluation sets of writers never trained on"
once train "$PYTHON" -m dyvte.tiny.data --out "$work/train" --scenes "$SCENES" --processes 2
once eval "$PYTHON" -m dyvte.tiny.sets --out "$work/eval" --questions "$QUESTIONS" --only gqa pope textvqa
once sample "$PYTHON" -m dyvte.gates.sample --data-path "$work/train/finetune.json" --output "$work/gates.json" \
    --fraction "$FRACTION" --seed "$SEED"

step "Exit gates: fresh ones, then trained while the model stays frozen"
train_gates() {
    rm -rf "$work/gates-fresh" "$work/gates"
    "$PYTHON" init_weight.py --model-path "$MODEL" --output "$work/gates-fresh" --width "$WIDTH" --gain "$GAIN" \
        --seed "$SEED"
    GATES=$work/gates-fresh DATA=$work/gates.json IMAGES=$work/train/images OUTPUT=$work/gates VERSION=$CONV_MODE \
        NPROC=1 BF16=False WORKERS=0 GLOBAL_BATCH=32 BATCH=32 LR=1e-3 EPOCHS=1 SEED=$SEED \
        bash scripts/v1_5/finetune_visual_gate.sh --disable_tqdm False
}
weights=$(cat "$MODEL"/*.safetensors | cksum)
once gates train_gates "$MODEL" "$weights" "$SCENES" "$FRACTION" "$WIDTH" "$GAIN" "$SEED"

for name in "${benchmarks[@]}"; do
    step "$name: baseline, then DyVTE"
    DATA=$work/eval/$name OUT=$work/results/$name/none METHOD=none bash "scripts/v1_5/eval/$name.sh"
    DATA=$work/eval/$name OUT=$work/results/$name/dyvte METHOD=dyvte GATES=$work/gates \
        bash "scripts/v1_5/eval/$name.sh"
done

step "The same questions with one exit layer for all, for every layer"
for name in "${benchmarks[@]}"; do
    "$PYTHON" -m dyvte.study.fixed_exits "$name" --data-dir "$work/eval/$name" --output "$work/results/$name" \
        --model-path "$MODEL" --conv-mode "$CONV_MODE" --temperature 0 --batch-size "$BATCH_SIZE"
done

step "Results"
"$PYTHON" -m dyvte.report.summary "$work/results" --out "$work/summary" --setting "seed=$SEED" "scenes=$SCENES" \
    "fraction=$FRACTION" "gate_width=$WIDTH" "seconds=$((SECONDS - started))"
step "Done"
