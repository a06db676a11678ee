#!/usr/bin/env bash
# Speed and memory of exits at LLaVA-1.5-7B's layer shapes and at Tiny-LLaVA's, as JSON, tables and plots. The defaults
# fit 2 CPU cores and 24 GiB and take about half an hour; nothing else should run meanwhile.
#
#   OUT         folder of the results (docs/benchmarks/<machine>)
#   MACHINE     its name there (cpu)
#   DEVICE      cpu, or cuda; with cuda, all 32 layers and larger batches
#   THREADS     CPU threads (all cores)
#   ROUNDS      measurements of each variant (5)
#
# What is measured already is kept: remove its JSON to measure it again. OUT/README.md shows all of it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python}
DEVICE=${DEVICE:-cpu}
OUT=${OUT:-docs/benchmarks/${MACHINE:-$DEVICE}}
ROUNDS=${ROUNDS:-5}
THREADS=${THREADS:-$(nproc)}
# glibc would hand freed memory back to the system after every layer, and fault it in again
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592

mkdir -p "$OUT"
bench() { # bench NAME COMMAND FLAGS...
    local name=$1
    shift
    if [ -f "$OUT/$name.json" ]; then return; fi
    printf '\n== %s\n' "$name"
    "$python" -m dyvte.bench "$1" --rounds "$ROUNDS" "${@:2}" --device "$DEVICE" --threads "$THREADS" \
        --json "$OUT/$name.json" | tee "$OUT/$name.md"
}

if [ "$DEVICE" = cpu ]; then
    few="--layers 3" fewer="--layers 2" large="8" exits="0 1" # of 32: a layer takes as long in a deeper model
    graphs=""
else
    few="" fewer="" large="8 32" exits="0 7 15 23"
    graphs="graphs"
fi

suite() { # suite MODEL SUFFIX FLAGS...
    local model=$1 suffix=$1$2
    shift 2
    # shellcheck disable=SC2086 # the lists above are several words each
    {
        bench "prefill-$suffix" prefill --model "$model" $few --batch 1 --exit-layers $exits "$@" \
            --plot "$OUT/prefill-$suffix.png"
        bench "prefill-$suffix-batch" prefill --model "$model" $fewer --batch $large --rounds 3 "$@" \
            --exit-layers 1 mixed --variants baseline packed never gates $graphs
        bench "gates-$suffix" prefill --model "$model" $fewer --batch 1 --rounds 9 "$@" \
            --variants baseline packed never
        bench "decode-$suffix" decode --model "$model" $fewer --batch 1 $large --exit-layers 0 mixed "$@" \
            --variants baseline packed gates $graphs
        bench "generate-$suffix" generate --model "$model" $few --batch 1 --exit-layers 1 "$@" \
            --variants baseline packed never gates $graphs
        bench "memory-$suffix" memory --model "$model" $few --batch 1 --exit-layers 1 mixed "$@" \
            --variants baseline packed gates fixed
    }
}

suite 7b ""
# shellcheck disable=SC2086
bench paper-7b prefill --model 7b $few --batch 1 --exit-layers 1 --allow-unequal-kernels \
    --variants baseline gates paper
bench labels-7b labels --model 7b --batch 1 --rounds 1 # all 32 layers: 14 GB
if [ "$DEVICE" = cpu ]; then
    # shellcheck disable=SC2086
    bench prefill-13b prefill --model 13b $fewer --batch 1 --exit-layers 0 --variants baseline packed never gates
else
    suite 13b ""
    if "$python" -c 'import flash_attn' 2>/dev/null; then
        for model in 7b 13b; do suite "$model" -flash --attn flash_attention_2; done
    fi
fi
for command in prefill decode generate labels; do
    bench "$command-tiny" $command --model tiny --dtype fp32 --batch 1 32 --visual-tokens 81 --gate-width 128
done
"$python" -m dyvte.bench.summary "$OUT"
