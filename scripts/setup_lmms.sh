#!/usr/bin/env bash
# Make an environment for lmms-eval with this project in it: .venv-lmms, or the folder named as the argument.
#
# lmms-eval pins a wandb that wants protobuf below 7, and sentencepiece needs 7.36; it runs with the newer one (wandb does
# not). Its torchvision is built for CUDA; beside a CPU build of torch it must go, and transformers does without it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${1:-.venv-lmms}
"${PYTHON:-python3}" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" "$(grep '^torch==' constraints.txt)"
"${pip[@]}" -c <(grep -v '^protobuf==' constraints.txt) 'lmms-eval==0.7.3'
"${pip[@]}" --no-deps "$(grep '^protobuf==' constraints.txt)"
"$venv/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda is None)' ||
    "$venv/bin/python" -m pip uninstall --quiet --yes torchvision
"${pip[@]}" --no-deps -e .
echo "lmms-eval is ready: $venv/bin/python -m lmms_eval --model dyvte ... (docs/harnesses.md)"
