# shellcheck shell=bash
# Sourced by scripts that run the project's code. Sets root (the project's folder), PYTHONPATH, and PYTHON where it is not
# set: .venv/bin/python where it exists, else python.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
    if [ -x "$root/.venv/bin/python" ]; then PYTHON=$root/.venv/bin/python; else PYTHON=python; fi
fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

# make FILE COMMAND...: run the command unless the file, which it writes last, is there.
make() {
    local file=$1
    shift
    if [ -f "$file" ]; then
        echo "kept: $file"
    else
        echo "making: $file"
        "$@"
    fi
}
