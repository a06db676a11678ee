#!/usr/bin/env bash
# SEED-Bench, images and videos:  MODEL=... METHOD=dyvte GATES=... scripts/v1_5/eval/seed.sh      (settings: common.sh)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
DATA=${DATA:-$root/playground/data/eval/seed_bench}
run_benchmark seed "$DATA/llava-seed-bench.jsonl" "$DATA" "$@"
# The upload file for the leaderboard, named after the folder of the answers:
"$PYTHON" "$root/scripts/convert_seed_for_submission.py" --annotation-file "$DATA/SEED-Bench.json" \
    --result-file "$OUT/merge.jsonl" --result-upload-file "$DATA/answers_upload/$(basename "$OUT").jsonl"
