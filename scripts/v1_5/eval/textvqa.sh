#!/usr/bin/env bash
# TextVQA, validation split:  MODEL=... METHOD=dyvte GATES=... scripts/v1_5/eval/textvqa.sh    (settings: common.sh)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
DATA=${DATA:-$root/playground/data/eval/textvqa}
run_benchmark textvqa "$DATA/llava_textvqa_val_v051_ocr.jsonl" "$DATA/train_images" "$@"
