#!/usr/bin/env bash
# What does dynamic buy? Gates against every fixed exit layer, against rules without gates, and the oracle exit:
#   scripts/reproduce/dynamic.sh [MODEL]     (default: Tiny-LLaVA)
#
#   BENCHMARKS   with blanks between (gqa pope textvqa sqa seed)
#   THRESHOLDS   of the gates, beside their own (0.1 0.25 0.75 0.9 0.97)
#   RIVALS       see rivals.sh                    (more settings: common.sh)
set -euo pipefail
if [ $# -gt 0 ]; then MODEL=$1; fi
source "$(dirname "${BASH_SOURCE[0]}")/study.sh"
source "$(dirname "${BASH_SOURCE[0]}")/rivals.sh"
folder=$(rivals_dir "$MODEL")
listed=$(rivals_of "$MODEL")
mapfile -t rivals <<<"$listed"
own=$(sed -n 's/^ *"threshold": \([0-9.e-]*\),\{0,1\}$/\1/p' "$(gates_of "$MODEL")/gates.json" 2>/dev/null || true)

places=() oracles=()
for name in ${BENCHMARKS:-gqa pope textvqa sqa seed}; do
    ready "$name" || continue
    for line in none "${rivals[@]}" dyvte; do
        read -r method config <<<"$line"
        rival "$MODEL" "$name" "${line//[ =]/-}" "$method" "$config"
        places+=("$folder/$name/${line//[ =]/-}/record.json")
    done
    for threshold in ${THRESHOLDS:-0.1 0.25 0.75 0.9 0.97}; do
        if [ "$threshold" = "${own:-0.5}" ]; then continue; fi
        THRESHOLD=$threshold rival "$MODEL" "$name" "dyvte-$threshold" dyvte
        places+=("$folder/$name/dyvte-$threshold/record.json")
    done
    words="${BATCH_SIZE:-} ${CONV_MODE:-} $(state_of "$MODEL" "$(data_of "$MODEL" "$name")")"
    once "$folder/$name/fixed/.done" "$words" study fixed_exits "$name" "$folder/$name/fixed"
    once "$folder/$name/oracle/.done" "$words" study oracle "$name" "$folder/$name/oracle"
    places+=("$folder/$name/fixed")
    oracles+=("$folder/$name/oracle")
done
[ ${#places[@]} -gt 0 ] || { echo "dynamic.sh: no benchmark is ready" >&2; exit 1; }
"$PYTHON" -m dyvte.study.dynamic "${places[@]}" --oracle "${oracles[@]}" --output "$OUT/tables"
