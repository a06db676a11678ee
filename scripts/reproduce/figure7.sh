#!/usr/bin/env bash
# Figure 7 of the paper: questions with their answers and tokens per second, without and with exit
#   scripts/reproduce/figure7.sh      (settings: study.sh)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/study.sh"
for name in ${BENCHMARKS:-gqa textvqa}; do
    ready "$name" || continue
    # shellcheck disable=SC2046 # several flags
    study examples "$name" "$(numbers_of "$name")/examples" --limit "${LIMIT:-6}" $(exit_flags)
    plot examples "figure7-$name" "$(numbers_of "$name")/examples"
done
