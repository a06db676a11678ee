#!/usr/bin/env bash
# Table 6 of the paper (gates that look at attention):  scripts/reproduce/table6.sh [MODEL...]
# Without arguments: Tiny-LLaVA and the paper's models in MODELS_DIR.     (settings: common.sh, gates.sh; BENCHMARKS)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/gates.sh"
state_table table6 attention attention "$@"
