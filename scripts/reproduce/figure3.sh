#!/usr/bin/env bash
# Figure 3 of the paper: attention within and between image and text, by layer, and the three stages
#   scripts/reproduce/figure3.sh      (settings: study.sh)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/study.sh"
attention_figure 3 gqa sqa textvqa
