#!/usr/bin/env bash
# How small gates can be at the same decisions:  scripts/reproduce/gate_sizes.sh [MODEL]     (default: Tiny-LLaVA)
#
#   JUDGE_DATA   another sample, in TRAIN_IMAGES, that no gate is fitted to (Tiny-LLaVA: made in OUT/tiny-train)
#   REFERENCE    the size whose FLOPs the others are compared at (full-2048)
#   BENCHMARKS   on which each size is scored (gqa textvqa pope)     (more: common.sh, gates.sh)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/gates.sh"
model=${1:-$TINY}
stores_to_fit_and_judge "$model"
fit_grid "$model" sizes sizes
read -ra benchmarks <<<"${BENCHMARKS:-gqa textvqa pope}"
RESULTS=$(work_of "$model")/size-results
evaluate_grid "$model" sizes "${benchmarks[@]}"
records=()
if [ -d "$RESULTS" ]; then records=(--records "$RESULTS"); fi
"$PYTHON" -m dyvte.study.gate_sizes --store "$(work_of "$model")/judge-store" --gates "$(work_of "$model")/sizes" \
    --model-path "$model" --reference "${REFERENCE:-full-2048}" "${records[@]}" --output "$OUT/tables"
