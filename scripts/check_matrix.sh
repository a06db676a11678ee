#!/usr/bin/env bash
# The core's tests over the Pythons found here and over the oldest and newest supported transformers, each in an
# environment of its own below the project (.venv-*). What is not installed is skipped, and named. Arguments are tests:
#
#   scripts/check_matrix.sh                       # tests/decoding tests/cost tests/gates tests/reduction
#   CASES="3.12-pinned" scripts/check_matrix.sh tests/decoding -x
#
#   CASES        which of them (default: 3.10-pinned 3.11-pinned 3.12-pinned 3.13-pinned 3.10-lowest 3.11-oldest
#                3.11-newest 3.11-unpinned)
#                pinned: constraints.txt; oldest: transformers 5.17.0; newest: the newest transformers 5 of the index;
#                lowest: each package of pyproject.toml at its lower bound; unpinned: what pip chooses today.
#                torch is the pinned one in all of them: older and newer builds bring gigabytes of CUDA
#   KEEP=1       keep the environments (about 2 GB each with a CPU build of torch)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
oldest=$(sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml).0
cases=${CASES:-3.10-pinned 3.11-pinned 3.12-pinned 3.13-pinned 3.10-lowest 3.11-oldest 3.11-newest 3.11-unpinned}
[ $# -gt 0 ] || set -- tests/decoding tests/cost tests/gates tests/reduction
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# An interpreter of this version that starts; pyenv's shims exist for versions that are not selected, and fail.
find_python() {
    local candidate
    for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
        if "$candidate" -c "import ensurepip, sys; raise SystemExit('%d.%d' % sys.version_info[:2] != '$1')" \
            >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# Packages whose pinned versions do not fit every transformers: pip chooses those.
loose='transformers|tokenizers|huggingface_hub|hf-xet|httpx2|httpcore2|truststore|typer'

# Every lower bound of pyproject.toml as a pin.
lower_bounds() {
    grep -oE '"[A-Za-z0-9_.-]+(\[[a-z]+\])?>=[0-9.]+' pyproject.toml | sed -E 's/"//; s/\[.*\]//; s/>=/==/' |
        grep -Ev '^(torch|setuptools)=='
}

install() {
    local venv=$1 kind=$2 pip=("$1/bin/python" -m pip install --quiet --disable-pip-version-check)
    "${pip[@]}" "$(grep '^torch==' constraints.txt)"
    case $kind in
        pinned) "${pip[@]}" -c constraints.txt -e '.[dev]' ;;
        oldest) "${pip[@]}" -c <(grep -Ev "^($loose)==" constraints.txt) -e '.[dev]' "transformers==$oldest" ;;
        newest) "${pip[@]}" -c <(grep -Ev "^($loose)==" constraints.txt) -e '.[dev]' --upgrade 'transformers<6' ;;
        lowest) "${pip[@]}" -c <(lower_bounds) -e '.[dev]' ;;
        unpinned) "${pip[@]}" -e '.[dev]' "$(grep '^torch==' constraints.txt)" ;;
        *) echo "unknown case: $kind" >&2 && return 1 ;;
    esac
}

failed=() summary=()
for case in $cases; do
    version=${case%%-*} kind=${case#*-} venv=$root/.venv-$case
    if ! python=$(find_python "$version"); then
        summary+=("$case: skipped, no Python $version is installed here")
        continue
    fi
    echo "check_matrix: $case"
    if ! { "$python" -m venv "$venv" && install "$venv" "$kind"; } >"$log" 2>&1; then
        summary+=("$case: skipped, not installable: $(grep -m1 ERROR "$log" || tail -n1 "$log")")
    elif "$venv/bin/python" -m pytest -q "$@" 2>&1 | tee "$log"; then
        summary+=("$case: $("$venv/bin/python" -c 'import transformers as t; print("transformers", t.__version__)'): $(tail -n1 "$log")")
    else
        failed+=("$case")
        summary+=("$case: FAILED: $(tail -n1 "$log")")
    fi
    [ -n "${KEEP:-}" ] || rm -rf "$venv"
done
printf '%s\n' "${summary[@]}"
[ ${#failed[@]} -eq 0 ]
