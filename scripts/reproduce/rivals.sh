# Methods beside DyVTE, for the scripts of this folder (sourced after common.sh). More settings:
#
#   RIVALS       methods with their settings, split by ";", instead of those below ("fastv k=2 r=0.5;tome r=18")
#   VTW_K        VTW's layer; else the one below, else dyvte.study.vtw_search looks for it with TRAIN_DATA, TRAIN_IMAGES
#   VTW_DIVERGENCE   the search's threshold (0.003; its paper has 0.0005 for 13B)

# rivals_dir MODEL: the folder of these records; apart from results_of, so that seconds are of one series of runs.
rivals_dir() { echo "$OUT/rivals/$(basename "$(dirname "$1")")-$(basename "$1")"; }

# vtw_layer MODEL KNOWN: VTW's k.
vtw_layer() {
    local found
    found=$(rivals_dir "$1")/vtw.json
    if [ -n "${VTW_K:-$2}" ]; then
        echo "${VTW_K:-$2}"
        return
    fi
    [ -n "${TRAIN_DATA:-}" ] && [ -n "${TRAIN_IMAGES:-}" ] || {
        echo "set VTW_K, or TRAIN_DATA and TRAIN_IMAGES to search VTW's layer for $1" >&2
        return 2
    }
    "$PYTHON" -m dyvte.study.vtw_search --model-path "$1" --data-path "$TRAIN_DATA" --image-folder "$TRAIN_IMAGES" \
        --output "$found" --default-conv-mode vicuna_v1 ${CONV_MODE:+--conv-mode "$CONV_MODE"} --divergence "${VTW_DIVERGENCE:-0.003}" >&2
    "$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))["k"])' "$found"
}

# rivals_of MODEL: methods with their settings, one a line, after the baseline and before DyVTE.
#   LLaVA-1.5: FastV, PyramidDrop and StabilityExit (VisiPruner) with their papers' values for it, VTW with its paper's
#   layer for 7B; r of ToMe so that it costs what it does in Table 4 (5.5 TFLOPs); random dropping as FastV drops.
#   Tiny-LLaVA (20 layers, 81 visual tokens): the same shares of layers and tokens. VTW's layer as the search finds it
#   on the training data; there 0.95 is also the lowest of StabilityExit's `still` that changed none of 64 answers (0.9
#   changed one), and it is an exit alone, because its size depends on the model.
rivals_of() {
    local k
    if [ -n "${RIVALS:-}" ]; then
        tr ';' '\n' <<<"$RIVALS"
        return
    fi
    case $(basename "$1") in
    llava-v1.5-7b | llava-1.5-7b-hf) k=15 ;;
    *) k='' ;;
    esac
    if [ "$1" = "$TINY" ]; then
        k=$(vtw_layer "$1" 9) || return
        printf '%s\n' "tome r=4" "fastv k=2 r=0.5" "vtw k=$k" "random k=2 r=0.5" "pooling s=2" \
            "pyramiddrop stages=4 ratio=0.5" "stability start=4 size=0 still=0.95"
    else
        k=$(vtw_layer "$1" "$k") || return
        printf '%s\n' "tome r=18" "fastv k=2 r=0.5" "vtw k=$k" "random k=2 r=0.5" "pooling s=2" \
            "pyramiddrop stages=4 ratio=0.5" "stability start=7 size=0.2"
    fi
}

# rival MODEL BENCHMARK FOLDER METHOD [SETTINGS]: one evaluation into rivals_dir/BENCHMARK/FOLDER.
rival() {
    local folder gates=''
    folder=$(rivals_dir "$1")/$2/$3
    case +$4+ in *+dyvte+*) gates=$(gates_of "$1") ;; esac
    printf '\n%s on %s: %s %s\n' "$1" "$2" "$4" "${5:-}"
    evaluation "$1" "$2" "$folder" "$4" "${5:-}" "$gates"
    [ -f "$folder/record.json" ] || { echo "$2 has no score for $4: see above" >&2; return 1; }
}
