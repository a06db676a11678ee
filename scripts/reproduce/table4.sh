#!/usr/bin/env bash
# Table 4 of the paper and beyond: scores and costs of DyVTE and of the methods people would use instead, and a Pareto
# plot:  scripts/reproduce/table4.sh [MODEL]     (default: Tiny-LLaVA)
#
#   BENCHMARKS   with blanks between (the paper's sqa mmvet seed mmbench; Tiny-LLaVA: gqa pope textvqa sqa seed mmbench)
#   RIVALS, VTW_K   see rivals.sh                    (more settings: common.sh)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/rivals.sh"
model=${1:-$TINY}
default="sqa mmvet seed mmbench"
if [ "$model" = "$TINY" ]; then default="gqa pope textvqa sqa seed mmbench"; fi
listed=$(rivals_of "$model")
mapfile -t rivals <<<"$listed"
fastv="fastv k=2 r=0.5"
for line in "${rivals[@]}"; do
    case $line in fastv*) fastv=$line ;; esac
done

places=()
for name in ${BENCHMARKS:-$default}; do
    has_data "$model" "$name" || continue
    for line in none "${rivals[@]}" dyvte "dyvte+$fastv"; do
        read -r method config <<<"$line"
        folder=${line//[ =]/-}
        rival "$model" "$name" "$folder" "$method" "$config"
        places+=("$(rivals_dir "$model")/$name/$folder/record.json")
    done
done
[ ${#places[@]} -gt 0 ] || { echo "table4.sh: no benchmark is ready" >&2; exit 1; }
"$PYTHON" -m dyvte.report.rivals_table "${places[@]}" --out "$OUT/tables"
"$PYTHON" -m dyvte.study.pareto "${places[@]}" --out "$OUT/tables/table4"
echo "written: $OUT/tables/table4.md, .tex, .csv, .png and .pdf"
