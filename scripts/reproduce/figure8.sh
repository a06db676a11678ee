#!/usr/bin/env bash
# Figure 8 of the paper: Figure 3 again, for another model (MODEL) or other questions (BENCHMARKS; vqav2)
#   scripts/reproduce/figure8.sh      (settings: study.sh)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/study.sh"
attention_figure 8 vqav2
