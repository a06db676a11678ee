#!/usr/bin/env bash
# Tiny-LLaVA on all nine benchmarks' layouts, on a CPU: both tables of the paper, and where questions exit.
#
#   QUESTIONS    of each benchmark (200)          (more settings: common.sh)
set -euo pipefail
bash "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
started=$SECONDS
evaluate "$TINY" gqa vqav2 textvqa sqa seed mme mmbench pope mmvet
table table1 "$TINY"
table table2 "$TINY"
"$PYTHON" -m dyvte.report.figures exits "$(results_of "$TINY")" --out "$OUT/tables/exits.png"
printf 'done in %d:%02d\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60))
