#!/usr/bin/env bash
# Make the environment where it is missing, then run the tests; arguments go to pytest:  scripts/test.sh tests/eval -x
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
bash scripts/setup.sh
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "${VENV:-$root/.venv}/bin/python" -m pytest "$@"
