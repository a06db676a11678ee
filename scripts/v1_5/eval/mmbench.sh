#!/usr/bin/env bash
# MMBench, dev split:  MODEL=... METHOD=dyvte GATES=... scripts/v1_5/eval/mmbench.sh      (settings: common.sh)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
DATA=${DATA:-$root/playground/data/eval/mmbench}
split=mmbench_dev_20230712
RUNNER=llava.eval.model_vqa_mmbench
run_benchmark mmbench "$DATA/$split.tsv" "$DATA" --single-pred-prompt "$@"
# The sheet for MMBench's server, named after the folder of the answers:
"$PYTHON" "$root/scripts/convert_mmbench_for_submission.py" --annotation-file "$DATA/$split.tsv" \
    --result-dir "$(dirname "$OUT")" --experiment "$(basename "$OUT")" --upload-dir "$DATA/answers_upload/$split"
