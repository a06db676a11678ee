#!/usr/bin/env bash
# Table 3 of the paper (gates that look at one or two of the four states):  scripts/reproduce/table3.sh [MODEL...]
# Without arguments: Tiny-LLaVA and the paper's models in MODELS_DIR.     (settings: common.sh, gates.sh; BENCHMARKS)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/gates.sh"
state_table table3 pairs states "$@"
