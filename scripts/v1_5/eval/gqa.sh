#!/usr/bin/env bash
# GQA, testdev-balanced:  MODEL=... METHOD=dyvte GATES=... scripts/v1_5/eval/gqa.sh      (settings: common.sh)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
DATA=${DATA:-$root/playground/data/eval/gqa}
run_benchmark gqa "$DATA/llava_gqa_testdev_balanced.jsonl" "$DATA/data/images" "$@"
# For GQA's own eval.py, as LLaVA leaves it:
"$PYTHON" "$root/scripts/convert_gqa_for_eval.py" --src "$OUT/merge.jsonl" --dst "$OUT/testdev_balanced_predictions.json"
