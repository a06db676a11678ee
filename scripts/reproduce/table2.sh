#!/usr/bin/env bash
# Table 2 of the paper (GQA, VQAv2, TextVQA, ScienceQA):  scripts/reproduce/table2.sh [MODEL...]
# Without arguments: Tiny-LLaVA and the paper's models in MODELS_DIR.     (settings: common.sh)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
if [ $# -eq 0 ]; then mapfile -t models < <(models_at_hand); else models=("$@"); fi
for model in "${models[@]}"; do
    evaluate "$model" gqa vqav2 textvqa sqa
done
table table2 "${models[@]}"
