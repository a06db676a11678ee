#!/usr/bin/env bash
# Figure 14 of the paper: Figure 5 again, for another model (MODEL) or other questions (BENCHMARKS; textvqa)
#   scripts/reproduce/figure14.sh      (settings: study.sh)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/study.sh"
entropy_figure 14 textvqa
