# Shared by the scripts of this folder (sourced, not run). Settings, all environment variables:
#
#   MODELS_DIR   where checkpoints are looked for when none is named (checkpoints)
#   DATA_ROOT    the benchmarks' data (playground/data/eval)
#   OUT          results and tables (outputs/reproduce)
#   GATES_DIR    gates of MODEL are in GATES_DIR/<name of MODEL>-gates, unless its folder holds some (checkpoints)
#   QUESTIONS, SEED   Tiny-LLaVA's own sets: questions of each benchmark (200), which are made in OUT/tiny-eval
#   CONV_MODE, BATCH_SIZE, THRESHOLD, CUDA_VISIBLE_DEVICES, ...   as in scripts/v1_5/eval/common.sh
#
# Evaluations that are done are kept, interrupted ones go on.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
if [ -z "${PYTHON:-}" ]; then
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python; fi
fi
export PYTHON
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
MODELS_DIR=${MODELS_DIR:-checkpoints}
DATA_ROOT=${DATA_ROOT:-playground/data/eval}
OUT=${OUT:-outputs/reproduce}
GATES_DIR=${GATES_DIR:-checkpoints}
TINY=playground/tiny/model

# models_at_hand: Tiny-LLaVA, and the paper's models in MODELS_DIR, one a line.
models_at_hand() {
    echo "$TINY"
    "$PYTHON" -c 'import sys; from pathlib import Path; from dyvte.report.paper import known_models
for model in known_models([Path(sys.argv[1])]): print(model)' "$MODELS_DIR"
}

# results_of MODEL: the folder of its records.
results_of() { echo "$OUT/results/$(basename "$(dirname "$1")")-$(basename "$1")"; }

# evaluate MODEL BENCHMARK...: without and with DyVTE. A benchmark whose data are not there is left out, and says so.
evaluate() {
    local model=$1 name results
    shift
    results=$(results_of "$model")
    for name in "$@"; do
        has_data "$model" "$name" || continue
        printf '\n%s on %s\n' "$model" "$name"
        evaluation "$model" "$name" "$results/$name/none" none
        evaluation "$model" "$name" "$results/$name/dyvte" dyvte "" "$(gates_of "$model")"
    done
}

# has_data MODEL BENCHMARK: whether its data are there; Tiny-LLaVA's own are made.
has_data() {
    if [ "$1" = "$TINY" ]; then tiny_sets >&2; fi
    "$PYTHON" -m dyvte.benchmarks check "$2" --data-dir "$(data_of "$1" "$2")" --quiet >&2 && return
    echo "$2: left out for $1, its data are not ready (see above)" >&2
    return 1
}

# evaluation MODEL BENCHMARK FOLDER METHOD [SETTINGS [GATES]]: answers and record in FOLDER, kept where they are there
# from the same model, gates, questions and settings. Files are told by size and time.
evaluation() {
    local model=$1 name=$2 folder=$3 method=$4 config=${5:-} gates=${6:-} data words
    data=$(data_of "$model" "$name")
    # shellcheck disable=SC2086 # no gates: no place
    words="$method $config ${THRESHOLD:-} ${BATCH_SIZE:-} ${CONV_MODE:-} ${VERIFY_EVERY:-} ${VARIANT:-} ${CHUNKS:-} \
$gates $(state_of "$model" "$data" $gates)"
    # nobody has graded or scored the answers: there is something left to do
    if [ ! -f "$folder/record.json" ]; then rm -f "$folder/.done"; fi
    once "$folder/.done" "$words" run_evaluation
}

# run_evaluation: what evaluation describes, in its variables.
run_evaluation() (
    if [ "$model" = "$TINY" ]; then tiny_settings "$name"; fi
    # the test split has no public answers, so it gives no record
    if [ -f "$data/v2_mscoco_val2014_annotations.json" ]; then export SPLIT=llava_vqav2_mscoco_val2014; fi
    export MODEL=$model DATA=$data METHOD=$method METHOD_CONFIG=$config GATES=$gates OUT=$folder
    bash "scripts/v1_5/eval/$name.sh"
)

# once MARK WORDS COMMAND...: run the command unless it has finished before with the same words.
once() {
    local mark=$1 words=$2
    shift 2
    if [ -f "$mark" ] && [ "$(cat "$mark")" = "$words" ]; then
        echo "kept: $(dirname "$mark")"
        return
    fi
    rm -f "$mark"
    "$@"
    mkdir -p "$(dirname "$mark")"
    echo "$words" >"$mark"
}

# state_of PATH...: a digest of names, sizes and times of the files in these places.
state_of() { find -L "$@" -maxdepth 1 -type f -printf '%f %s %T@\n' 2>/dev/null | sort | cksum; }

data_of() {
    local folder
    folder=$("$PYTHON" -c 'import sys; from dyvte.benchmarks import get_benchmark
print(get_benchmark(sys.argv[1]).folder)' "$2")
    if [ "$1" = "$TINY" ]; then echo "$OUT/tiny-eval/$folder"; else echo "$DATA_ROOT/$folder"; fi
}

# gates_of MODEL: its folder of gates; nothing where the checkpoint holds its own.
gates_of() {
    if [ "$1" = "$TINY" ]; then
        echo "${GATES:-playground/tiny/gates}"
    elif [ -n "${GATES:-}" ]; then
        echo "$GATES"
    elif [ -d "$GATES_DIR/$(basename "$1")-gates" ]; then
        echo "$GATES_DIR/$(basename "$1")-gates"
    fi
}

tiny_sets() {
    local mark=$OUT/tiny-eval/.questions
    if [ "$(cat "$mark" 2>/dev/null)" = "${QUESTIONS:-200}" ]; then return; fi
    "$PYTHON" -m dyvte.tiny.sets --out "$OUT/tiny-eval" --questions "${QUESTIONS:-200}" \
        --only vqav2 gqa sqa textvqa pope mme mmbench seed mmvet
    echo "${QUESTIONS:-200}" >"$mark"
}

# tiny_settings BENCHMARK: what Tiny-LLaVA is asked with. MM-Vet's grades come from a stand-in for the judge, which
# compares words; they are no GPT-4 grades, and the record names the judge.
tiny_settings() {
    export CONV_MODE=${CONV_MODE:-vicuna_v1_nosys} BATCH_SIZE=${BATCH_SIZE:-16} HF_HUB_OFFLINE=1
    export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592
    if [ "$1" = mmvet ]; then
        local address=$OUT/.judge
        rm -f "$address"
        "$PYTHON" -m dyvte.tiny.judge --address-file "$address" &
        # shellcheck disable=SC2064 # the process of this moment
        trap "kill $! 2>/dev/null" EXIT
        while [ ! -s "$address" ]; do sleep 0.1; done
        OPENAI_BASE_URL=$(cat "$address")
        export OPENAI_BASE_URL OPENAI_API_KEY=none MMVET_JUDGE_MODEL=exact-match
        export PROMPT_FILE=playground/tiny/judge_prompt.txt ROUNDS=1
    fi
}

# table NAME MODEL...: write and show a table of the paper.
table() {
    local name=$1 model places=()
    shift
    for model in "$@"; do places+=("$(results_of "$model")"); done
    "$PYTHON" -m dyvte.report.paper_table "$name" "${places[@]}" --out "$OUT/tables"
    echo "written: $OUT/tables/$name.md, .tex and .csv"
}
