#!/usr/bin/env bash
# Table 6 of the paper (gates that look at attention):  scripts/reproduce/table6.sh [MODEL...]
# Without arguments: Tiny-LLaVA and the paper's models in MODELS_DIR.     (settings: common.sh, gates.sh; BENCHMARKS)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/gates.sh"
if [ $# -eq 0 ]; then mapfile -t models < <(models_at_hand); else models=("$@"); fi
read -ra benchmarks <<<"${BENCHMARKS:-gqa textvqa mmvet sqa}"
for model in "${models[@]}"; do
    gate_settings "$model"
    store_states "$model" "$sample" store --attention
    fit_grid "$model" attention attention --width "$width"
    evaluate_grid "$model" attention "${benchmarks[@]}"
done
state_table table6 "${models[@]}"
