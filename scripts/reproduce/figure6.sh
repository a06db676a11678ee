#!/usr/bin/env bash
# Figure 6 of the paper: after which layer the visual tokens exit
#   scripts/reproduce/figure6.sh      (settings: study.sh)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/study.sh"
names=() places=()
for name in ${BENCHMARKS:-gqa sqa textvqa pope}; do
    if ready "$name"; then names+=("$name") places+=("$(results_of "$MODEL")/$name/dyvte"); fi
done
evaluate "$MODEL" "${names[@]}"
plot exits figure6 "${places[@]}"
