#!/usr/bin/env bash
# MM-Vet:  MODEL=... METHOD=dyvte GATES=... scripts/v1_5/eval/mmvet.sh      (settings: common.sh)
#
# Its answers are graded by a language model, for which more settings are needed:
#   OPENAI_API_KEY or OPENAI_BASE_URL (or both), MMVET_JUDGE_MODEL (default: gpt-4-0613)
#   PROMPT_FILE  mm-vet_evaluator.py of github.com/yuweihao/MM-Vet     ROUNDS  gradings of each answer (default: 5)
# Without them the answers are left in results/ for an MM-Vet evaluator, and there is no record.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
DATA=${DATA:-$root/playground/data/eval/mm-vet}
RUNNER=llava.eval.model_vqa
answer_benchmark mmvet "$DATA/llava-mm-vet.jsonl" "$DATA/images" "$@"

name=$(basename "$OUT")
results=$DATA/results/$name.json
"$PYTHON" "$root/scripts/convert_mmvet_for_eval.py" --src "$OUT/merge.jsonl" --dst "$results"
if [ -n "${PROMPT_FILE:-}" ] && [ -n "${OPENAI_API_KEY:-}${OPENAI_BASE_URL:-}" ]; then
    "$PYTHON" -m dyvte.benchmarks.judge --data-dir "$DATA" --answers "$OUT/merge.jsonl" --name "$name" \
        --prompt-file "$PROMPT_FILE" --rounds "${ROUNDS:-5}"
    record_benchmark mmvet "$@"
elif compgen -G "$OUT/grades/*-grade-*runs.json" >/dev/null; then
    record_benchmark mmvet "$@"
else
    echo "Answered, not graded. For a score, set OPENAI_API_KEY (or OPENAI_BASE_URL) and PROMPT_FILE and start this" \
        "again, or upload $results to an MM-Vet evaluator and put its grade file into $OUT/grades."
fi
