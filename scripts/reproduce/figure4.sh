#!/usr/bin/env bash
# Figure 4 of the paper: score against the layer at which all questions exit, with DyVTE and the oracle exit
#   scripts/reproduce/figure4.sh      (settings: study.sh)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/study.sh"
places=() oracles=()
for name in ${BENCHMARKS:-gqa sqa textvqa}; do
    ready "$name" || continue
    evaluate "$MODEL" "$name"
    # shellcheck disable=SC2086 # several layers
    study fixed_exits "$name" "$(results_of "$MODEL")/$name" ${LAYERS:+--layers $LAYERS}
    study oracle "$name" "$(numbers_of "$name")/oracle" ${LIMIT:+--limit "$LIMIT"}
    places+=("$(results_of "$MODEL")/$name")
    oracles+=("$(numbers_of "$name")/oracle")
done
plot manual figure4 "${places[@]}" --oracle "${oracles[@]}"
