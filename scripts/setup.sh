#!/usr/bin/env bash
# Make the project's environment in .venv. If it is up to date, do nothing.
#
#   setup.sh [EXTRAS]   the extras to install (default: study,tiny,train, for the quickstart; tests need dev)
#
#   PYTHON            the interpreter to build on (default: the first Python 3.10 or newer found)
#   VENV              the environment's folder (default: .venv; relative to the project's folder)
#   TORCH_INDEX_URL   a package index for torch alone, for example https://download.pytorch.org/whl/cpu
#   MIN_DISK_GB       free space required before installing (default: 6)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
venv=${VENV:-$root/.venv}
extras=${1:-study,tiny,train}
stamp=$venv/.dyvte-setup
supported='import sys; raise SystemExit(sys.version_info < (3, 10))'

fail() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

# The environment is up to date if it was made at this place from these two files, with these extras or with dev, which
# includes what this script installs by default. The stamp has one line for each set of extras.
fingerprint() { { echo "$venv"; cat "$root/pyproject.toml" "$root/constraints.txt"; } | cksum; }
up_to_date() {
    [ -f "$stamp" ] && grep -Fxq -e "$(fingerprint) $extras" -e "$(fingerprint) dev" "$stamp" &&
        "$venv/bin/python" -c '' 2>/dev/null
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        "$PYTHON" -c "$supported" 2>/dev/null || fail "PYTHON=$PYTHON is not a working Python 3.10 or newer."
        echo "$PYTHON"
        return
    fi
    local candidate
    for candidate in python3.12 python3.11 python3.13 python3.10 python3.14 python3 python; do
        if "$candidate" -c "$supported" >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.10 or newer was found on PATH." \
        "Install one (Debian/Ubuntu: apt install python3 python3-venv; macOS: brew install python@3.12;" \
        "anywhere: https://www.python.org/downloads), or name it: PYTHON=/path/to/python3 bash scripts/setup.sh"
}

check_disk() {
    local free_kb place min_gb=${MIN_DISK_GB:-6}
    place=$(dirname "$venv")
    mkdir -p "$place"
    free_kb=$(df -Pk "$place" | awk 'NR == 2 { print $4 }')
    if [ "$free_kb" -lt $((min_gb * 1024 * 1024)) ]; then
        fail "only $((free_kb / 1024)) MB are free in $place; the environment needs about $min_gb GB." \
            "Free some space, or put it elsewhere: VENV=/other/disk/venv bash scripts/setup.sh" \
            "(MIN_DISK_GB=3 is enough where a CPU build of torch gets installed)"
    fi
}

make_venv() {
    local python
    python=$(find_python)
    check_disk
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python has no venv module. Debian/Ubuntu: apt install python3-venv, then run this again."
    echo "setup: making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
}

if up_to_date; then exit 0; fi
"$venv/bin/python" -c "$supported; import pip" >/dev/null 2>&1 || make_venv

install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" "$@"; }
trap 'echo "setup: an installation failed; the lines above say why. Run the script again to resume." >&2' ERR
echo "setup: installing PyTorch and the other dependencies (some minutes the first time)"
# torch alone and by its exact version first: an index or wheel folder with a CPU build then supplies that build.
install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$(grep '^torch==' "$root/constraints.txt")"
install -e "${root}[$extras]"
echo "$(fingerprint) $extras" >>"$stamp"
echo "setup: done; to work by hand: source $venv/bin/activate"
