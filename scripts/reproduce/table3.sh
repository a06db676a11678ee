#!/usr/bin/env bash
# Table 3 of the paper (gates that look at one or two of the four states):  scripts/reproduce/table3.sh [MODEL...]
# Without arguments: Tiny-LLaVA and the paper's models in MODELS_DIR.     (settings: common.sh, gates.sh; BENCHMARKS)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/gates.sh"
if [ $# -eq 0 ]; then mapfile -t models < <(models_at_hand); else models=("$@"); fi
read -ra benchmarks <<<"${BENCHMARKS:-gqa textvqa mmvet sqa}"
for model in "${models[@]}"; do
    gate_settings "$model"
    store_states "$model" "$sample" store --attention
    fit_grid "$model" pairs states --width "$width"
    evaluate_grid "$model" states "${benchmarks[@]}"
done
state_table table3 "${models[@]}"
