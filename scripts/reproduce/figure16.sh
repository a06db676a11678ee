#!/usr/bin/env bash
# Figure 16 of the paper: Figure 5 again, for another model (MODEL) or other questions (BENCHMARKS; pope)
#   scripts/reproduce/figure16.sh      (settings: study.sh)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/study.sh"
entropy_figure 16 pope
