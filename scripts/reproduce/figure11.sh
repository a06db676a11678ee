#!/usr/bin/env bash
# Figure 11 of the paper: Figure 3 again, for another model (MODEL) or other questions (BENCHMARKS; pope)
#   scripts/reproduce/figure11.sh      (settings: study.sh)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/study.sh"
attention_figure 11 pope
