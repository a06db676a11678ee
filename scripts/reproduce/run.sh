# shellcheck shell=bash
# Sourced by the scripts of this folder: run.sh NAME [MODEL ...] [--questions N ...]     (see docs/study.md)
# Settings are flags or environment variables: python -m dyvte.reproduce --help
source "$(dirname "${BASH_SOURCE[0]}")/../project.sh"
cd "$root" || exit
exec "$PYTHON" -m dyvte.reproduce "$@"
