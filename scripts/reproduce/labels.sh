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
stores_to_fit_and_judge "$model"
# epochs and seed are this study's own; the last of a flag's values counts
# shellcheck disable=SC2086 # several numbers
"$PYTHON" -m dyvte.study.supervision_modes --store "$(work_of "$model")/store" \
    --held-out "$(work_of "$model")/judge-store" --model-path "$model" --output "$OUT/tables/labels" \
    --epochs ${LABEL_EPOCHS:-1 4} --seeds ${LABEL_SEEDS:-0 1 2} "${fit_flags[@]}" --width "$width"
