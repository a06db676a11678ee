#!/usr/bin/env bash
# Tiny-LLaVA as a model of another family, LLaVA-NeXT, in seconds (see dyvte/tiny/tiles.py). Then, for example:
#
#   MODEL=checkpoints/tiny-next DATA=... scripts/v1_5/eval/gqa.sh
#
#   MODEL, OUT   the checkpoint to convert (playground/tiny/model), and where to write (checkpoints/tiny-next)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../project.sh"
cd "$root"
export HF_HUB_OFFLINE=1
OUT=${OUT:-checkpoints/tiny-next}
if [ -f "$OUT/processor_config.json" ]; then
    echo "kept: $OUT"
    exit 0
fi
converted=$(mktemp -d)
trap 'rm -rf "$converted"' EXIT
"$PYTHON" -m llava.convert "${MODEL:-playground/tiny/model}" "$converted"
"$PYTHON" -m dyvte.tiny.tiles --model "$converted" --out "$OUT"
echo "$OUT holds Tiny-LLaVA as a LLaVA-NeXT model"
