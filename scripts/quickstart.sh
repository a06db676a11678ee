#!/usr/bin/env bash
# The whole method on the shipped Tiny-LLaVA, on a CPU: set up, make the data, train exit gates, evaluate with and
# without them, compare with every fixed exit layer. What is finished already is kept; to start anew, remove OUT.
#
#   MODEL  checkpoint (default: playground/tiny/model)       OUT   results (default: outputs/quickstart)
#   SEED   of gates, sample and training (default: 0)
set -euo pipefail
started=$SECONDS
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
bash scripts/setup.sh

export PYTHON=${VENV:-.venv}/bin/python HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export MODEL=${MODEL:-playground/tiny/model}
OUT=${OUT:-outputs/quickstart}
SEED=${SEED:-0}
SCENES=4000        # of the training scenes, in instruction format
FRACTION=0.5       # of these, drawn for the gates: one turn each
QUESTIONS=400      # per benchmark
WIDTH=256          # of a gate; the paper's 2048 is for models that are 4096 wide
export BATCH_SIZE=16
benchmarks=(gqa pope textvqa)

step() { printf '\n[%d:%02d] %s\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)) "$*"; }

# once MARK COMMAND...: run the command unless it has finished before with the same words.
once() {
    local mark=$OUT/.done/$1
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
once train "$PYTHON" -m dyvte.tiny.data --out "$OUT/train" --scenes "$SCENES" --processes 2
once eval "$PYTHON" -m dyvte.tiny.sets --out "$OUT/eval" --questions "$QUESTIONS"
once sample "$PYTHON" -m llava.train.sample --data-path "$OUT/train/finetune.json" --output "$OUT/gates.json" \
    --fraction "$FRACTION" --seed "$SEED"

step "Exit gates: fresh ones, then trained while the model stays frozen"
train_gates() {
    rm -rf "$OUT/gates-fresh" "$OUT/gates"
    "$PYTHON" init_weight.py --model-path "$MODEL" --output "$OUT/gates-fresh" --width "$WIDTH" --seed "$SEED"
    GATES=$OUT/gates-fresh DATA=$OUT/gates.json IMAGES=$OUT/train/images OUTPUT=$OUT/gates NPROC=1 WORKERS=0 \
        GLOBAL_BATCH=32 BATCH=32 LR=1e-3 EPOCHS=2 bash scripts/v1_5/finetune_visual_gate.sh --disable_tqdm False
}
weights=$(cat "$MODEL"/*.safetensors | cksum)
once gates train_gates "$MODEL" "$weights" "$SCENES" "$FRACTION" "$WIDTH" "$SEED"

for name in "${benchmarks[@]}"; do
    step "$name: baseline, then DyVTE"
    DATA=$OUT/eval/$name OUT=$OUT/results/$name/none METHOD=none bash "scripts/v1_5/eval/$name.sh"
    DATA=$OUT/eval/$name OUT=$OUT/results/$name/dyvte METHOD=dyvte GATES=$OUT/gates bash "scripts/v1_5/eval/$name.sh"
done

step "The same questions with one exit layer for all, for every layer"
for name in "${benchmarks[@]}"; do
    "$PYTHON" -m dyvte.study.fixed_exits "$name" --data-dir "$OUT/eval/$name" --output "$OUT/results/$name" \
        --model-path "$MODEL" --conv-mode vicuna_v1 --temperature 0 --batch-size "$BATCH_SIZE"
done

step "Results"
"$PYTHON" -m dyvte.report.summary "$OUT/results" --out "$OUT/summary" --setting "seed=$SEED" "scenes=$SCENES" \
    "fraction=$FRACTION" "gate_width=$WIDTH" "seconds=$((SECONDS - started))"
step "Done"
