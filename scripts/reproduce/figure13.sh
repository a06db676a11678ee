#!/usr/bin/env bash
# Figure 13 of the paper: Figure 5 again, for another model (MODEL) or other questions (BENCHMARKS; vqav2)
#   scripts/reproduce/figure13.sh      (settings: study.sh)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/study.sh"
entropy_figure 13 vqav2
