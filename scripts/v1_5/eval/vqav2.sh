#!/usr/bin/env bash
# VQAv2:  MODEL=... METHOD=dyvte GATES=... scripts/v1_5/eval/vqav2.sh      (settings: common.sh)
#
#   SPLIT   llava_vqav2_mscoco_test-dev2015   writes the file to upload to EvalAI (default)
#           llava_vqav2_mscoco_val2014        is scored here, against the public annotations
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
DATA=${DATA:-$root/playground/data/eval/vqav2}
SPLIT=${SPLIT:-llava_vqav2_mscoco_test-dev2015}
questions=$DATA/$SPLIT.jsonl
upload=${OUT:+$OUT/upload.json} # beside the answers where OUT is given, else in LLaVA's place
need() { [ -f "$DATA/$1" ] || die "$DATA/$1 is missing: $2"; }
case $SPLIT in
*_val2014)
    need "$SPLIT.jsonl" "scripts/convert_vqav2_questions.py writes it from the official questions"
    need v2_mscoco_val2014_annotations.json "it comes from visualqa.org/download.html"
    run_benchmark vqav2 "$questions" "$DATA/val2014" "$@"
    ;;
*)
    need "$SPLIT.jsonl" "it comes with LLaVA's eval.zip"
    need llava_vqav2_mscoco_test2015.jsonl "it comes with LLaVA's eval.zip"
    answer_benchmark vqav2 "$questions" "$DATA/test2015" "$@"
    upload=${upload:-$DATA/answers_upload/$SPLIT/$(basename "$OUT").json}
    "$PYTHON" "$root/scripts/convert_vqav2_for_submission.py" --dir "$DATA" --split "$SPLIT" \
        --ckpt "$(basename "$OUT")" --src "$OUT/merge.jsonl" --dst "$upload"
    echo "Upload $upload to EvalAI, challenge 830, phase test-dev."
    ;;
esac
