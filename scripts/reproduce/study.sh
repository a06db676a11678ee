# Shared by the figure scripts of this folder (sourced, not run). Settings, all environment variables:
#
#   MODEL        checkpoint (the shipped Tiny-LLaVA)
#   GATES        its gates, where they are not in GATES_DIR and the checkpoint holds none
#   BENCHMARKS   whose questions are used, with blanks between (each script has its own)
#   LIMIT        questions of each, spread evenly, for attention (100), the oracle (all) and the examples (6)
#   LAYERS       fixed exit layers of figure 4, with blanks between (all)
#   OUT          figures go to OUT/figures/<model>, numbers to OUT/study and OUT/results (outputs/reproduce)
#
# More settings: common.sh. What is done is kept, and interrupted runs go on.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
MODEL=${MODEL:-$TINY}
model_name=$(basename "$(results_of "$MODEL")")
figures=$OUT/figures/$model_name

# ready NAME: whether the benchmark's data are there; Tiny-LLaVA's own are made.
ready() { has_data "$MODEL" "$1"; }

# numbers_of NAME: the folder of a benchmark's numbers.
numbers_of() { echo "$OUT/study/$model_name/$1"; }

# study MODULE NAME FOLDER FLAGS...: run python -m dyvte.study.MODULE on a benchmark.
study() (
    module=$1 name=$2 folder=$3
    shift 3
    if [ "$MODEL" = "$TINY" ]; then tiny_settings questions; fi
    case $name in
    sqa | mmbench) set -- --single-pred-prompt "$@" ;;
    esac
    "$PYTHON" -m "dyvte.study.$module" "$name" --data-dir "$(data_of "$MODEL" "$name")" --model-path "$MODEL" \
        --output "$folder" --default-conv-mode vicuna_v1 ${CONV_MODE:+--conv-mode "$CONV_MODE"} --temperature 0 \
        --batch-size "${BATCH_SIZE:-1}" "$@"
)

# exit_flags: the flags for exit by gates.
exit_flags() {
    local gates
    gates=$(gates_of "$MODEL")
    echo "--method dyvte${gates:+ --gates $gates}${THRESHOLD:+ --threshold $THRESHOLD}"
}

# attention NAME METHOD: measure attention without exit (none) or with it (dyvte).
attention() {
    local flags="--method none"
    if [ "$2" = dyvte ]; then flags=$(exit_flags); fi
    # shellcheck disable=SC2086 # several flags
    study attention "$1" "$(numbers_of "$1")/$2" --limit "${LIMIT:-100}" $flags
}

# attention_figure NUMBER NAME...: attention mass by layer, one column for each benchmark.
attention_figure() {
    local number=$1 name places=()
    shift
    for name in ${BENCHMARKS:-"$@"}; do
        ready "$name" || continue
        attention "$name" none
        places+=("$(numbers_of "$name")/none")
    done
    plot attention "figure$number" "${places[@]}"
}

# entropy_figure NUMBER NAME...: entropies by layer, without and with exit side by side.
entropy_figure() {
    local number=$1 name places=()
    shift
    for name in ${BENCHMARKS:-"$@"}; do
        ready "$name" || continue
        attention "$name" none
        attention "$name" dyvte
        places+=("$(numbers_of "$name")/none" "$(numbers_of "$name")/dyvte")
    done
    plot entropy "figure$number" "${places[@]}"
}

# plot KIND FIGURE ARGUMENTS...: draw from stored numbers.
plot() {
    local kind=$1 figure=$2
    shift 2
    if [[ ${1:--} == -* ]]; then
        echo "$figure: no benchmark of ${BENCHMARKS:-the default ones} is ready" >&2
        return 1
    fi
    "$PYTHON" -m dyvte.study.plot "$kind" "$@" --out "$figures/$figure"
}
