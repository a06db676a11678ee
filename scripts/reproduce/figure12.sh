#!/usr/bin/env bash
# Figure 12 of the paper: Figure 3 again, for another model (MODEL) or other questions (BENCHMARKS; mmbench)
#   scripts/reproduce/figure12.sh      (settings: study.sh)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/study.sh"
attention_figure 12 mmbench
