#!/usr/bin/env bash
# Every table and figure for one model, and one HTML report of them:  scripts/reproduce/all.sh [MODEL]
# Without an argument: Tiny-LLaVA, on a CPU.
#
#   OUT          where everything goes (outputs/all/<name of MODEL>); the report is OUT/report.html
#   STEPS        run these only, with blanks between (all, in the order below)
#   FORCE        1: run steps again that are done
#   QUESTIONS    Tiny-LLaVA's questions of each benchmark (200)
#   LIMIT, LAYERS, SCENES, GATES, RIVALS, ...    as in common.sh, gates.sh, study.sh, rivals.sh and the steps' scripts;
#                not BENCHMARKS: each step has its own
#
# A step is done when it ended well with the same model, gates, settings, scripts and benchmarks at hand, and what it
# makes is there. Python code and the content of data are not looked at: FORCE=1 after a change there. A step that
# fails is named and does not keep the others from running; the exit code is 1 then. An interrupted run goes on.
#
# Not run: figures 9 and 10, which for one model are columns of Figure 3.
set -euo pipefail
unset BENCHMARKS METHOD METHOD_CONFIG EXIT_LAYER DATA
here=scripts/reproduce
model=${1:-playground/tiny/model}
export OUT=${OUT:-outputs/all/$(basename "$(dirname "$model")")-$(basename "$model")}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
export MODEL=$model
name=$(basename "$(results_of "$model")")
marks=$OUT/steps

# NAME PRODUCT of each step: the script's name, and what it makes below OUT.
steps() {
    local number
    for number in 1 2 3 4 5 6; do echo "table$number tables/table$number.csv"; done
    echo "dynamic tables/dynamic.json"
    echo "labels tables/labels/supervision_modes.json"
    echo "gate_sizes tables/gate_sizes.json"
    for number in 3 4 5 6; do echo "figure$number figures/$name/figure$number.png"; done
    echo "figure7 figures/$name/figure7-*.html"
    for number in 8 11 12 13 14 15 16; do echo "figure$number figures/$name/figure$number.png"; done
}

SETTINGS=(QUESTIONS SEED CONV_MODE BATCH_SIZE VERIFY_EVERY THRESHOLD THRESHOLDS LIMIT LAYERS SCENES FRACTION VERSION DTYPE
    LR EPOCHS GATE_BATCH WIDTH GAIN REFERENCE LABEL_EPOCHS LABEL_SEEDS RIVALS VTW_K VTW_DIVERGENCE TRAIN_DATA TRAIN_IMAGES
    JUDGE_DATA GATES GATES_DIR DATA_ROOT CHUNKS VARIANT)

# inputs: what all steps depend on, one a line. Files are told by size and time.
inputs() {
    local setting
    echo "MODEL=$model"
    for setting in "${SETTINGS[@]}"; do
        if [ -n "${!setting:-}" ]; then echo "$setting=${!setting}"; fi
    done
    "$PYTHON" - "$DATA_ROOT" "$model" "$(gates_of "$model")" "${TRAIN_DATA:-}" "${JUDGE_DATA:-}" <<'PY'
import sys
from pathlib import Path
from dyvte.benchmarks import BENCHMARKS
from dyvte.benchmarks.check import check, ready
data, *places = sys.argv[1:]
for place in map(Path, filter(None, places)):
    for file in sorted(place.iterdir()) if place.is_dir() else [place]:
        if file.is_file():
            print("file", file, file.stat().st_size, file.stat().st_mtime_ns)
for name, benchmark in BENCHMARKS.items():
    if ready(check(benchmark, Path(data, benchmark.folder))):
        print("benchmark", name)
PY
}

# key_of STEP: changes when the step has to run again.
key_of() { { echo "$common"; cat "$here"/{common,gates,study,rivals,"$1"}.sh; } | cksum; }

# is_done STEP PRODUCT
is_done() {
    if [ -n "${FORCE:-}" ] || ! compgen -G "$OUT/$2" >/dev/null; then return 1; fi
    [ "$(head -n 1 "$marks/$1.done" 2>/dev/null)" = "$(key_of "$1")" ]
}

clock() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

# run_step STEP: in a process group of its own, so that stopping this script stops all that it started.
run_step() {
    local step=$1 begun=$SECONDS status=0 key
    key=$(key_of "$step") # of what ran, should a script change meanwhile
    rm -f "$marks/$step.done" "$marks/$step.failed"
    set -m
    bash "$here/$step.sh" "$model" >"$marks/$step.log" 2>&1 </dev/null &
    child=$!
    set +m
    wait "$child" || status=$?
    child=
    if [ $status -eq 0 ]; then
        printf '%s\nseconds %d\n' "$key" $((SECONDS - begun)) >"$marks/$step.done"
        echo "done in $(clock $((SECONDS - begun)))"
        return
    fi
    tr "\r" "\n" <"$marks/$step.log" | tail -n 5 >"$marks/$step.failed"
    echo "FAILED after $(clock $((SECONDS - begun))), exit code $status: $marks/$step.log ends with"
    sed 's/^/        /' "$marks/$step.failed"
    failed+=("$step")
}

stop() {
    trap - INT TERM
    local tries=100
    if [ -n "$child" ]; then
        kill -- "-$child" 2>/dev/null || true
        while kill -0 -- "-$child" 2>/dev/null && [ $((tries -= 1)) -gt 0 ]; do sleep 0.1; done
        kill -KILL -- "-$child" 2>/dev/null || true
    fi
    echo
    echo "all.sh: stopped; the same command goes on from here" >&2
    exit 130
}

mkdir -p "$marks"
if command -v flock >/dev/null; then
    exec 9>>"$marks/.lock" # held by what this script starts, too
    flock -n 9 || { echo "all.sh: another run is at work in $OUT" >&2; exit 1; }
fi
child='' failed=()
trap stop INT TERM
common=$(inputs)
grep -v '^file ' <<<"$common" >"$marks/inputs.partial"
if ! cmp -s "$marks/inputs.partial" "$marks/inputs"; then cp "$marks/inputs.partial" "$marks/inputs"; fi
rm -f "$marks/inputs.partial"
mapfile -t all < <(steps)
if [ -n "${STEPS:-}" ]; then
    chosen=()
    for step in $STEPS; do
        line=$(printf '%s\n' "${all[@]}" | grep "^$step ") || {
            echo "all.sh: STEPS: $step is not one of $(printf '%s\n' "${all[@]}" | cut -d' ' -f1 | paste -sd' ' -)" >&2
            exit 2
        }
        chosen+=("$line")
    done
    all=("${chosen[@]}")
fi
echo "$model -> $OUT"
for index in "${!all[@]}"; do
    read -r step product <<<"${all[index]}"
    printf '[%2d/%d] %s  %-10s  ' $((index + 1)) "${#all[@]}" "$(date +%H:%M)" "$step"
    if is_done "$step" "$product"; then echo "kept"; else run_step "$step"; fi
done
"$PYTHON" -m dyvte.report.page "$OUT" --out "$OUT/report.html" || failed+=(report)
if [ ${#failed[@]} -gt 0 ]; then
    echo "all.sh: after $(clock $SECONDS), failed: ${failed[*]}; the same command tries these again" >&2
    exit 1
fi
echo "all steps done in $(clock $SECONDS)"
