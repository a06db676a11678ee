#!/usr/bin/env bash
# Figure 9 of the paper: Figure 3 again, for another model (MODEL) or other questions (BENCHMARKS; textvqa)
#   scripts/reproduce/figure9.sh      (settings: study.sh)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/study.sh"
attention_figure 9 textvqa
