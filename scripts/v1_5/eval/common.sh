# shellcheck shell=bash
# Shared by the benchmark scripts of this folder, which set -euo pipefail and source it, then set DATA (and RUNNER where
# another command line answers) and call run_benchmark. Settings, all environment variables:
#
#   MODEL        checkpoint folder or hub name            METHOD      none | dyvte | fixed | ... (docs/method.md); dyvte+fastv: both
#   METHOD_CONFIG  settings of the method, such as "k=3 r=0.5"
#   GATES        folder or hub name, for METHOD=dyvte     THRESHOLD   exit above this gate probability (calibrated, else 0.5)
#   EXIT_LAYER   layer, for METHOD=fixed                  CONV_MODE   template of LLaVA's models (vicuna_v1)
#   DATA         the benchmark's folder                   OUT         where answers and the record go
#   BATCH_SIZE   prompts per batch                        CHUNKS      shards, one process each
#   SHARDS       which of them run here, such as 0-7,12, others on other machines; none: merge and score (all)
#   VERIFY_EVERY with batches, each N-th question is asked alone too (100; 0: none); the record says how many differ
#   VARIANT      scoring variant, where there are several (python -m dyvte.benchmarks list)
#   CUDA_VISIBLE_DEVICES  GPUs; one shard for each unless CHUNKS says otherwise
#   PYTHON       interpreter (default: .venv/bin/python where it exists, else python)
#
# Further arguments of a script go to the command line that answers (RUNNER). An interrupted run goes on where it
# stopped when it is started again with the same settings. Functions share global variables: method_arguments sets
# method_flags, method_settings and variant; answering sets OUT and chunks, which record_benchmark reads.

source "$(dirname "${BASH_SOURCE[0]}")/../../project.sh"
MODEL=${MODEL:-liuhaotian/llava-v1.5-7b}
METHOD=${METHOD:-none}
METHOD_CONFIG=${METHOD_CONFIG:-}
GATES=${GATES:-}
THRESHOLD=${THRESHOLD:-}
EXIT_LAYER=${EXIT_LAYER:-}
CONV_MODE=${CONV_MODE:-}
BATCH_SIZE=${BATCH_SIZE:-1}
VERIFY_EVERY=${VERIFY_EVERY:-100}
VARIANT=${VARIANT:-}
SHARDS=${SHARDS:-all}
RUNNER=llava.eval.model_vqa_loader # a script whose questions another command line answers sets its own

die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# method_arguments: set method_flags, method_settings (for the record) and variant (end of OUT's default; not VARIANT).
method_arguments() {
    local part parts
    method_flags=(--method "$METHOD" ${METHOD_CONFIG:+--method-config "$METHOD_CONFIG"})
    method_settings=("temperature=0" "conv_mode=${CONV_MODE:-vicuna_v1}" "batch_size=$BATCH_SIZE")
    variant=""
    "$PYTHON" -m dyvte.methods check "$METHOD" || die "unknown METHOD=$METHOD (see above)"
    IFS=+ read -ra parts <<<"$METHOD"
    for part in "${parts[@]}"; do
        case $part in
        none) ;;
        dyvte) gate_arguments ;;
        fixed)
            [ -n "$EXIT_LAYER" ] || die "METHOD=$METHOD needs EXIT_LAYER=<layer>"
            method_flags+=(--exit-layer "$EXIT_LAYER")
            method_settings+=("exit_layer=$EXIT_LAYER")
            variant+=-exit$EXIT_LAYER
            ;;
        *) variant+=-$part ;;
        esac
    done
    if [ -n "$METHOD_CONFIG" ]; then
        method_settings+=("method_config=$METHOD_CONFIG")
        variant+=-${METHOD_CONFIG//[ =]/-}
    fi
}

# gate_arguments: the part of method_arguments for exit gates.
gate_arguments() {
    local folder=$GATES
    if [ -n "$GATES" ] && [ ! -d "$GATES" ]; then # once, so that all shards have the same
        folder=$("$PYTHON" -m dyvte.gates.hub "$GATES") || die "no GATES=$GATES (see above)"
        [ -d "$folder" ] || die "GATES=$GATES is no folder, and no name on the hub; init_weight.py makes one"
    fi
    variant+=-dyvte$THRESHOLD
    if [ -z "$THRESHOLD" ] && [ -f "$folder/gates.json" ]; then # for the record
        THRESHOLD=$(sed -n 's/^ *"threshold": \([0-9.e-]*\),\{0,1\}$/\1/p' "$folder/gates.json")
    fi
    THRESHOLD=${THRESHOLD:-0.5}
    method_flags+=(--threshold "$THRESHOLD" ${GATES:+--gates "$folder"})
    method_settings+=("threshold=$THRESHOLD" "gates=$GATES")
}

# answer QUESTIONS IMAGES ARGUMENTS...: after method_arguments, answer and merge in question order, into OUT. Ends the
# script where SHARDS leaves shards to other machines.
answer() {
    local questions=$1 images=$2 gpus status=0 process
    shift 2
    OUT=${OUT:-$DATA/answers/$(basename "${questions%.*}")/$(basename "$MODEL")$variant}
    IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-0}"
    chunks=${CHUNKS:-${#gpus[@]}}
    "$PYTHON" -m dyvte.engine.shards "$OUT" --chunks "$chunks" --shards "$SHARDS" -- \
        "$PYTHON" -m "$RUNNER" --model-path "$MODEL" --question-file "$questions" --image-folder "$images" \
        --temperature 0 --default-conv-mode vicuna_v1 ${CONV_MODE:+--conv-mode "$CONV_MODE"} \
        --batch-size "$BATCH_SIZE" --verify-every "$VERIFY_EVERY" "${method_flags[@]}" "$@" &
    process=$!
    trap 'kill "$process" 2>/dev/null; wait "$process"; exit 130' INT TERM
    wait "$process" || status=$?
    trap - INT TERM
    [ "$status" -eq 0 ] || exit "$status"
    case $SHARDS in
    all | none) ;;
    *)
        echo "Shards $SHARDS of $chunks are answered. When all are, SHARDS=none merges and scores them."
        exit 0
        ;;
    esac
}

# answer_benchmark NAME QUESTIONS IMAGES ARGUMENTS...: check the files and answer.
answer_benchmark() {
    method_arguments
    "$PYTHON" -m dyvte.benchmarks check "$1" --data-dir "$DATA" --quiet ||
        die "the files in DATA=$DATA are not ready (see above)"
    answer "${@:2}"
}

# record_benchmark NAME ARGUMENTS...: score the merged answers and write the record; ARGUMENTS are kept in it.
record_benchmark() {
    local name=$1
    shift
    "$PYTHON" -m dyvte.report.record "$name" --data-dir "$DATA" --answers "$OUT/merge.jsonl" \
        --output "$OUT/record.json" --scores "$OUT/scores.json" --variant "$VARIANT" \
        --model "$MODEL" --method "$METHOD" --command "$0 $*" \
        --setting "${method_settings[@]}" "chunks=$chunks" "arguments=$*"
}

# run_benchmark NAME QUESTIONS IMAGES ARGUMENTS...: answer and record.
run_benchmark() {
    answer_benchmark "$@"
    record_benchmark "$1" "${@:4}"
}
