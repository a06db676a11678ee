#!/usr/bin/env bash
# POPE, all splits:  MODEL=... METHOD=dyvte GATES=... scripts/v1_5/eval/pope.sh      (settings: common.sh)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
DATA=${DATA:-$root/playground/data/eval/pope}
run_benchmark pope "$DATA/llava_pope_test.jsonl" "$DATA/val2014" "$@"
