#!/usr/bin/env bash
# Labels of all layers against labels of one random layer a step, at the same number of forward passes:
#   scripts/reproduce/labels.sh [MODEL]     (default: Tiny-LLaVA)
#
#   JUDGE_DATA   another sample, in TRAIN_IMAGES, that no gate is fitted to (Tiny-LLaVA: made in OUT/tiny-train)
#   LABEL_EPOCHS, LABEL_SEEDS   with blanks between (1 4; 0 1 2)     (more settings: common.sh, gates.sh)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/gates.sh"
model=${1:-$TINY}
gate_settings "$model"
if [ "$model" = "$TINY" ]; then JUDGE_DATA=${JUDGE_DATA:-$OUT/tiny-train/judge.json}; fi
[ -n "${JUDGE_DATA:-}" ] || { echo "labels.sh: set JUDGE_DATA to a sample that no gate is fitted to" >&2; exit 2; }
store_states "$model" "$sample" store --attention
store_states "$model" "$JUDGE_DATA" judge-store
# epochs and seed are this study's own; the last of a flag's values counts
# shellcheck disable=SC2086 # several numbers
"$PYTHON" -m dyvte.study.supervision_modes --store "$(work_of "$model")/store" \
    --held-out "$(work_of "$model")/judge-store" --model-path "$model" --output "$OUT/tables/labels" \
    --epochs ${LABEL_EPOCHS:-1 4} --seeds ${LABEL_SEEDS:-0 1 2} "${fit_flags[@]}" --width "$width"
