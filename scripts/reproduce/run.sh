# shellcheck shell=bash
# Sourced by the scripts of this folder: run.sh NAME [MODEL ...] [--questions N ...]     (see docs/study.md)
# Settings are flags or environment variables: python -m dyvte.reproduce --help
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
if [ -z "${PYTHON:-}" ]; then
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python; fi
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
exec "$PYTHON" -m dyvte.reproduce "$@"
