#!/usr/bin/env bash
# Table 5 of the paper (gates that look at all combinations of the four states):  scripts/reproduce/table5.sh [MODEL...]
# Without arguments: Tiny-LLaVA and the paper's models in MODELS_DIR.     (settings: common.sh, gates.sh; BENCHMARKS)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/gates.sh"
state_table table5 states states "$@"
