#!/usr/bin/env bash
# Table 1 of the paper (SEED, MME, MMBench, POPE, MM-Vet):  scripts/reproduce/table1.sh [MODEL...]
# Without arguments: Tiny-LLaVA and the paper's models in MODELS_DIR.     (settings: common.sh)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
if [ $# -eq 0 ]; then mapfile -t models < <(models_at_hand); else models=("$@"); fi
for model in "${models[@]}"; do
    evaluate "$model" seed mme mmbench pope mmvet
done
table table1 "${models[@]}"
