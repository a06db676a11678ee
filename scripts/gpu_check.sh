#!/usr/bin/env bash
# Check a GPU in less than six minutes: the tests that need one, answers and exits of Tiny-LLaVA beside those of a CPU,
# and the main rows of the benchmark. Results go to OUT, whose README.md shows them. What was not reached in time is
# named, and measured by the next run. Needs torch, transformers, the core dependencies, and pytest for the tests.
#
#   MACHINE     name of the card (as torch has it, h100 for "NVIDIA H100 80GB HBM3")
#   OUT         folder of the results (docs/benchmarks/$MACHINE)
#   SECONDS_MAX time for all of it (345)
#   PYTHON      interpreter (.venv/bin/python where it exists, else python)
#   DEVICE      cuda; cpu tries the script out, with MODEL=tiny and EXTRA="--dtype fp32 --visual-tokens tiny ..."
#   ROUNDS      measurements of each variant (5)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ]; then
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python; fi
fi
export PYTHON DEVICE=${DEVICE:-cuda} PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1
card='
import sys, torch
if sys.argv[1] == "cpu":
    print("cpu")
elif not torch.cuda.is_available():
    sys.exit("gpu_check: torch finds no CUDA device here")
else:
    words = torch.cuda.get_device_name().lower().replace("nvidia", "").split()
    print("-".join(words[:2] if words[0] in ("a", "geforce", "rtx", "tesla") else words[:1]))
'
MACHINE=${MACHINE:-$("$PYTHON" -c "$card" "$DEVICE")}
export MACHINE OUT=${OUT:-docs/benchmarks/$MACHINE}
SECONDS_MAX=${SECONDS_MAX:-345}
mkdir -p "$OUT"
steps="| Step | Seconds | Outcome |\n| --- | ---: | --- |\n"
failed=0

# step NAME COMMAND...: run it in the time that is left, and note how it went
step() {
    local name=$1 began=$SECONDS left=$((SECONDS_MAX - SECONDS)) outcome=passed status=0
    shift
    printf '\n== %s (%d seconds left)\n' "$name" "$left"
    if [ "$left" -lt 15 ]; then
        outcome="no time left: run it again"
    else
        timeout -k 5 "$left" "$@" || status=$?
        case $status in
        0) ;;
        124 | 137) outcome="stopped, no time left: run it again" ;;
        *) outcome="failed, exit code $status" ;;
        esac
    fi
    [ "$outcome" = passed ] || failed=1
    steps+="| $name | $((SECONDS - began)) | $outcome |\n"
}

questions=tests/gpu/questions
parity() {
    step parity "$PYTHON" -m dyvte.bench.parity --model-path playground/tiny/model --gates playground/tiny/gates \
        --question-file $questions/questions.jsonl --image-folder $questions/images --device "$DEVICE" \
        --json "$OUT/parity.json" >"$OUT/parity.md.part"
    cat "$OUT/parity.md.part"
    sed -n '/^|/p' "$OUT/parity.md.part" >"$OUT/parity.md"
    rm "$OUT/parity.md.part"
}

if "$PYTHON" -c 'import pytest' 2>/dev/null; then
    step tests "$PYTHON" -m pytest -q -m gpu tests/gpu
else
    steps+="| tests | 0 | not run: pytest is not installed |\n"
    failed=1
fi
parity
SUITE=main step benchmark bash scripts/bench.sh

printf '%b' "$steps" | tee "$OUT/check.md"
"$PYTHON" -m dyvte.bench.summary "$OUT"
printf '%d seconds; %s\n' "$SECONDS" "$OUT/README.md"
exit $failed
