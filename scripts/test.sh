#!/usr/bin/env bash
# Make the environment where it is missing, then check style, safety and scripts (ruff, shellcheck), types (pyright) and
# that installed packages fit together, and run the tests in two processes (TEST_PROCESSES). Arguments go to pytest,
# which then runs alone:
#   scripts/test.sh tests/decoding -x
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
bash scripts/setup.sh dev
bin=${VENV:-$root/.venv}/bin
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if [ $# -eq 0 ]; then
    "$bin/ruff" check .
    "$bin/ruff" format --check .
    find scripts .ci \( -name '*.sh' -o -path .ci/run \) -print0 | xargs -0 "$bin/shellcheck"
    "$bin/pyright" --pythonpath "$bin/python"
    "$bin/python" -m pip check
    set -- --numprocesses "${TEST_PROCESSES:-2}" --dist loadfile
fi
exec "$bin/python" -m pytest "$@"
