#!/usr/bin/env bash
# MME:  MODEL=... METHOD=dyvte GATES=... scripts/v1_5/eval/mme.sh      (settings: common.sh)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
DATA=${DATA:-$root/playground/data/eval/MME}
run_benchmark mme "$DATA/llava_mme.jsonl" "$DATA/MME_Benchmark_release_version" "$@"
# The task files for MME's own calculation.py, named after the folder of the answers, and what it prints:
results=$DATA/eval_tool/answers/$(basename "$OUT")
"$PYTHON" "$root/scripts/convert_answer_to_mme.py" --data-dir "$DATA" --answers-file "$OUT/merge.jsonl" \
    --results_dir "$results"
# It stops over replies with line breaks, for which the record above has a score.
"$PYTHON" "$root/scripts/mme_calculation.py" --results_dir "$results" || true
