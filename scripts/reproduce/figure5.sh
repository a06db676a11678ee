#!/usr/bin/env bash
# Figure 5 of the paper: entropy of cross-attention and text self-attention, without and with exit
#   scripts/reproduce/figure5.sh      (settings: study.sh)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/study.sh"
entropy_figure 5 gqa
