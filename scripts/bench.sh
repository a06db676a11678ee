#!/usr/bin/env bash
# Speed and memory of exits at LLaVA-1.5-7B's layer shapes and at Tiny-LLaVA's, as JSON, tables and plots. The defaults
# fit 2 CPU cores and 24 GiB and take about 40 minutes; nothing else should run meanwhile.
#
#   OUT         folder of the results (docs/benchmarks/<machine>)
#   MACHINE     its name there (cpu)
#   DEVICE      cpu, or cuda; with cuda, all 32 layers and larger batches
#   THREADS     CPU threads (all cores)
#   ROUNDS      measurements of each variant (5)
#   SUITE       all, or main: the rows that scripts/gpu_check.sh takes, of all layers
#   MODEL       shape of the main rows (7b)
#   EXTRA       further flags of the main rows
#
# What is measured already is kept: remove its JSON to measure it again. OUT/README.md shows all of it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
SUITE=${SUITE:-all}
python=${PYTHON:-.venv/bin/python}
DEVICE=${DEVICE:-cpu}
OUT=${OUT:-docs/benchmarks/${MACHINE:-$DEVICE}}
ROUNDS=${ROUNDS:-5}
THREADS=${THREADS:-$(nproc)}
# glibc would hand freed memory back to the system after every layer, and fault it in again
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592

mkdir -p "$OUT"
failed=0 # whether a row failed; the others are measured all the same
bench() { # bench NAME COMMAND FLAGS...
    local name=$1
    shift
    if [ -f "$OUT/$name.json" ]; then return; fi
    printf '\n== %s\n' "$name"
    "$python" -m dyvte.bench "$1" --rounds "$ROUNDS" --device "$DEVICE" --threads "$THREADS" "${@:2}" \
        --json "$OUT/$name.json" | tee "$OUT/$name.md" || {
        echo "bench.sh: $name failed (see above)" >&2
        rm -f "$OUT/$name.md"
        failed=1
    }
}

if [ "$DEVICE" = cpu ]; then
    few="--layers 3" fewer="--layers 2" large="8" exits="0 1" half="0" # of 32: a layer takes as long in a deeper model
    graphs=""
else
    few="" fewer="" large="8 32" exits="0 7 15 23" half="13" # of Qwen2.5-VL's 28 layers
    graphs="graphs compiled"
fi

# what a card is judged by, the most telling rows first
main_rows() {
    local replayed="" model=${MODEL:-7b} extra="--attn auto ${EXTRA:-}" one="" static="" middle=1 more="0"
    if [ "$DEVICE" != cpu ]; then one="one-graph" static="static" middle=15 more="7 15 23" replayed="graphs"; fi
    # compiled layers are the newest, and take the longest to begin: rows of their own, so that nothing waits for them
    # shellcheck disable=SC2086 # the lists are several words each
    {
        bench "prefill-$model" prefill --model "$model" --batch 1 --exit-layers $more $extra \
            --variants baseline $one packed never gates fixed $replayed
        bench "ttft-$model" ttft --model "$model" --batch 1 --exit-layers $middle $extra \
            --variants baseline packed gates $replayed
        bench "decode-$model" decode --model "$model" --batch 1 --exit-layers $middle $extra \
            --variants baseline packed gates $replayed
        bench "prefill-$model-batch" prefill --model "$model" --batch $large --exit-layers $middle mixed $extra \
            --variants baseline packed gates $replayed
        bench "generate-$model" generate --model "$model" --batch 1 --exit-layers $middle $extra \
            --rounds 3 --answer-tokens 64 --variants baseline $static packed gates $replayed
        if [ "$DEVICE" != cpu ]; then
            bench "prefill-$model-compiled" prefill --model "$model" --batch 1 --exit-layers $more $extra \
                --variants baseline $one compiled
            # beside the rows above: is torch's variable-length kernel the better default, or SDPA?
            bench "prefill-$model-sdpa" prefill --model "$model" --batch 1 $large --exit-layers $middle mixed $extra \
                --attn sdpa --variants baseline packed $replayed
        fi
        bench "throughput-$model" throughput --model "$model" --batch ${large##* } --exit-layers $middle $extra \
            --questions 64 --rounds 2 --variants baseline gates $replayed
    }
}

if [ "$SUITE" = main ]; then
    main_rows
    exit $failed
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
        bench "ttft-$suffix" ttft --model "$model" $few --batch 1 --exit-layers 1 "$@" \
            --variants baseline packed gates $graphs
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
for model in qwen2.5-vl-7b qwen3-vl-8b internvl3-8b; do
    # shellcheck disable=SC2086
    bench "prefill-$model" prefill --model $model $fewer --batch 1 --exit-layers 0 \
        --variants baseline packed never gates $graphs
done
# shellcheck disable=SC2086
bench prefill-7b-next prefill --model 7b $fewer --batch 1 --rounds 3 --visual-tokens llava-next --exit-layers 0 \
    --variants baseline packed gates $graphs
# on 2 cores a layer over so many tokens takes half a minute
# shellcheck disable=SC2086
bench prefill-qwen2.5-vl-7b-long prefill --model qwen2.5-vl-7b $fewer --batch 1 --rounds 3 \
    --visual-tokens qwen2.5-vl-long --exit-layers $half --variants baseline packed gates $graphs
if [ "$DEVICE" != cpu ]; then
    # shellcheck disable=SC2086
    bench throughput-7b throughput --model 7b --batch 1 $large --exit-layers 15 --rounds 3 --workers 0 1 4 8 \
        --variants baseline gates $graphs
fi
bench throughput-tiny throughput --model tiny --dtype fp32 --batch 1 32 --visual-tokens tiny --gate-width 128 \
    --rounds 3 --workers 0 1 2 --variants baseline gates
for command in prefill decode generate ttft labels; do
    bench "$command-tiny" $command --model tiny --dtype fp32 --batch 1 32 --visual-tokens tiny --gate-width 128
done
"$python" -m dyvte.bench.summary "$OUT"
exit $failed
