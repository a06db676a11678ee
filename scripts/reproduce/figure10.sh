#!/usr/bin/env bash
# Figure 10 of the paper: Figure 3 again, for another model (MODEL) or other questions (BENCHMARKS; sqa)
#   scripts/reproduce/figure10.sh      (settings: study.sh)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/study.sh"
attention_figure 10 sqa
