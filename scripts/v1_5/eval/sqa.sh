#!/usr/bin/env bash
# ScienceQA, test split:  MODEL=... METHOD=dyvte GATES=... scripts/v1_5/eval/sqa.sh      (settings: common.sh)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
DATA=${DATA:-$root/playground/data/eval/scienceqa}
RUNNER=llava.eval.model_vqa_science
run_benchmark sqa "$DATA/llava_test_CQM-A.json" "$DATA/images/test" --single-pred-prompt "$@"
# What was read from each answer, as LLaVA leaves it:
"$PYTHON" -m llava.eval.eval_science_qa --base-dir "$DATA" --result-file "$OUT/merge.jsonl" \
    --output-file "$OUT/output.jsonl" --output-result "$OUT/result.json"
