# Gates fitted from one store of states, for the scripts of this folder (sourced after common.sh). More settings:
#
#   TRAIN_DATA, TRAIN_IMAGES   what dyvte.gates.sample drew, and its images (Tiny-LLaVA: made in OUT/tiny-train)
#   SCENES, FRACTION           Tiny-LLaVA's training scenes (8000), and the share of them that is drawn (0.2)
#   VERSION      prompt template of LLaVA's models (v1; Tiny-LLaVA: vicuna_v1_nosys)
#   DTYPE        float32 or bfloat16, in which the model runs and states are stored (float32)
#   LR, EPOCHS, GATE_BATCH, WIDTH, GAIN   of fitting; the paper's 4e-5, 1, 128, 2048, 1 (Tiny-LLaVA: 1e-3, 4, 32, 128, 0.1)

# work_of MODEL: the folder of its stores, gates and their records; apart from results_of, which Tables 1 and 2 read.
work_of() { echo "$OUT/gates/$(basename "$(dirname "$1")")-$(basename "$1")"; }

# tiny_training: Tiny-LLaVA's sample to fit gates to, and another one, of scenes that share none with it, to judge them.
tiny_training() {
    local folder=$OUT/tiny-train seed=${SEED:-0} mark name
    mark="${SCENES:-8000} ${FRACTION:-0.2} $seed"
    if [ "$(cat "$folder/.made" 2>/dev/null)" = "$mark" ]; then return; fi
    "$PYTHON" -m dyvte.tiny.data --out "$folder" --scenes "${SCENES:-8000}" --seed "$seed" --processes 2
    "$PYTHON" - "$folder" <<'PY'
import json, sys
from pathlib import Path
folder = Path(sys.argv[1])
records = json.loads((folder / "finetune.json").read_text())
cut = len(records) * 3 // 4
for name, part in (("fit", records[:cut]), ("judge", records[cut:])):
    (folder / f"{name}-all.json").write_text(json.dumps(part))
PY
    for name in fit judge; do
        "$PYTHON" -m dyvte.gates.sample --data-path "$folder/$name-all.json" --output "$folder/$name.json" \
            --fraction "${FRACTION:-0.2}" --seed "$seed" >/dev/null
    done
    echo "$mark" >"$folder/.made"
}

# gate_settings MODEL: set `sample`, `images`, `version` and `fit_flags`.
gate_settings() {
    local batch
    if [ "$1" = "$TINY" ]; then
        tiny_training
        sample=${TRAIN_DATA:-$OUT/tiny-train/fit.json} images=${TRAIN_IMAGES:-$OUT/tiny-train/images}
        version=${VERSION:-vicuna_v1_nosys} batch=${GATE_BATCH:-32}
        fit_flags=(--learning_rate "${LR:-1e-3}" --num_train_epochs "${EPOCHS:-4}" --gain "${GAIN:-0.1}" --disable_tqdm True)
        width=${WIDTH:-128}
    else
        sample=${TRAIN_DATA:-playground/data/llava_v1_5_mix665k_gates.json} images=${TRAIN_IMAGES:-playground/data}
        version=${VERSION:-} batch=${GATE_BATCH:-128}
        fit_flags=(--learning_rate "${LR:-4e-5}" --num_train_epochs "${EPOCHS:-1}" --gain "${GAIN:-1}")
        width=${WIDTH:-2048}
    fi
    fit_flags+=(--per_device_train_batch_size "$batch" --lr_scheduler_type cosine --warmup_ratio 0.03
        --weight_decay 0. --group_by_modality_length True --logging_steps 10 --seed "${SEED:-42}")
}

# store_states MODEL SAMPLE NAME ARGUMENTS...: the store work_of/NAME, finished if it is not.
store_states() {
    local model=$1 sample=$2 folder
    folder=$(work_of "$1")/$3
    shift 3
    "$PYTHON" -m dyvte.gates.store_states --model-path "$model" --data-path "$sample" --image-folder "$images" \
        ${version:+--version "$version"} --dtype "${DTYPE:-float32}" --output "$folder" "$@"
}

# stores_to_fit_and_judge MODEL: work_of/store, and work_of/judge-store of JUDGE_DATA, to which no gate is fitted.
stores_to_fit_and_judge() {
    gate_settings "$1"
    if [ "$1" = "$TINY" ]; then JUDGE_DATA=${JUDGE_DATA:-$OUT/tiny-train/judge.json}; fi
    [ -n "${JUDGE_DATA:-}" ] ||
        { echo "$(basename "$0"): set JUDGE_DATA to a sample that no gate is fitted to" >&2; exit 2; }
    store_states "$1" "$sample" store --attention
    store_states "$1" "$JUDGE_DATA" judge-store
}

# fit_grid MODEL GRID FOLDER FLAGS...: all gates of a grid of dyvte.study.gate_grid from the store, in work_of/FOLDER.
fit_grid() {
    local model=$1 grid=$2 folder=$3
    shift 3
    "$PYTHON" -m dyvte.study.gate_grid "$grid" --store "$(work_of "$model")/store" \
        --output "$(work_of "$model")/$folder" "${fit_flags[@]}" "$@"
}

# evaluate_grid MODEL FOLDER BENCHMARK...: each folder of gates in work_of/FOLDER on each benchmark whose data are there;
# records go to RESULTS (work_of/results).
evaluate_grid() {
    local model=$1 grid=$2 name folder results
    grid=$(work_of "$1")/$2 results=${RESULTS:-$(work_of "$1")/results}
    shift 2
    for name in "$@"; do
        has_data "$model" "$name" || continue
        evaluation "$model" "$name" "$results/$name/none" none
        for folder in "$grid"/*/; do
            printf '\n%s, %s, gates %s\n' "$model" "$name" "$(basename "$folder")"
            evaluation "$model" "$name" "$results/$name/$(basename "$folder")" dyvte "" "${folder%/}"
        done
    done
}

# state_table TABLE GRID FOLDER [MODEL...]: fit a grid to each model's store in work_of/FOLDER, evaluate it on BENCHMARKS,
# and write and show Table 3, 5 or 6. Without models: Tiny-LLaVA and the paper's in MODELS_DIR.
state_table() {
    local name=$1 grid=$2 folder=$3 model models places=() benchmarks
    shift 3
    if [ $# -eq 0 ]; then mapfile -t models < <(models_at_hand); else models=("$@"); fi
    read -ra benchmarks <<<"${BENCHMARKS:-gqa textvqa mmvet sqa}"
    for model in "${models[@]}"; do
        gate_settings "$model"
        store_states "$model" "$sample" store --attention
        fit_grid "$model" "$grid" "$folder" --width "$width"
        evaluate_grid "$model" "$folder" "${benchmarks[@]}"
        places+=("$(work_of "$model")/results")
    done
    "$PYTHON" -m dyvte.report.state_table "$name" "${places[@]}" --out "$OUT/tables"
    echo "written: $OUT/tables/$name.md, .tex and .csv"
}
