#!/usr/bin/env bash
# MMBench in Chinese, dev split (no part of the paper's tables: a score and the sheet for the server, no record):
#   MODEL=... METHOD=dyvte GATES=... scripts/v1_5/eval/mmbench_cn.sh      (settings: common.sh)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
DATA=${DATA:-$root/playground/data/eval/mmbench_cn}
split=mmbench_dev_cn_20231003
RUNNER=llava.eval.model_vqa_mmbench
[ -f "$DATA/$split.tsv" ] || die "$DATA/$split.tsv is missing; docs/evaluation.md says where it comes from"
method_arguments
answer "$DATA/$split.tsv" "$DATA" --single-pred-prompt --lang cn "$@"
"$PYTHON" "$root/scripts/convert_mmbench_for_submission.py" --annotation-file "$DATA/$split.tsv" \
    --result-dir "$(dirname "$OUT")" --experiment "$(basename "$OUT")" --upload-dir "$DATA/answers_upload/$split"
"$PYTHON" -m dyvte.benchmarks score mmbench --data-dir "$DATA" --answers "$OUT/merge.jsonl" --variant "$VARIANT" \
    --json "$OUT/scores.json"
