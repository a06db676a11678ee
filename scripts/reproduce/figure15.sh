#!/usr/bin/env bash
# Figure 15 of the paper: Figure 5 again, for another model (MODEL) or other questions (BENCHMARKS; sqa)
#   scripts/reproduce/figure15.sh      (settings: study.sh)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/study.sh"
entropy_figure 15 sqa
