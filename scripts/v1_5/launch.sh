# shellcheck shell=bash
# Sourced by the training scripts: goes to the repository's root and defines `launch`, which runs
# llava.train.train_mem under torchrun with the arguments it gets. Relative paths are relative to that root.
#
#   PYTHON     interpreter                              (default: .venv/bin/python where it exists, else python)
#   NPROC      processes on this machine                (default: one per GPU, at least one)
#   DEEPSPEED  DeepSpeed config, empty for plain DDP
#   NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT         several machines

source "$(dirname "${BASH_SOURCE[0]}")/../project.sh"
cd "$root" || exit
NPROC=${NPROC:-$("$PYTHON" -c 'import torch; print(max(1, torch.cuda.device_count()))')}
if [[ -z ${BF16:-} ]]; then
    # bf16 wherever there is a GPU; float32 on a CPU, where small models train better in it
    BF16=$("$PYTHON" -c 'import torch; print(torch.cuda.is_available())')
fi

# Flags that all stages share; those of a script come after them, and the last of a flag's values counts.
COMMON=(
    --bf16 "$BF16"
    --tf32 True
    --num_train_epochs "${EPOCHS:-1}"
    --eval_strategy no
    --save_strategy steps
    --weight_decay 0.
    --warmup_ratio 0.03
    --lr_scheduler_type cosine
    --logging_steps 1
    --model_max_length "${MAX_LENGTH:-2048}"
    --dataloader_num_workers "${WORKERS:-4}"
    --report_to "${REPORT_TO:-none}"
)
# Flags that LLaVA's two stages share.
# shellcheck disable=SC2034  # used by the scripts that source this file
LLAVA=(
    --model_name_or_path "${MODEL:-lmsys/vicuna-13b-v1.5}"
    --vision_tower "${VISION_TOWER:-openai/clip-vit-large-patch14-336}"
    --mm_projector_type mlp2x_gelu
    --mm_vision_select_layer -2
    --mm_use_im_start_end False
    --mm_use_im_patch_token False
    --gradient_accumulation_steps "${ACCUMULATION:-1}"
    --save_total_limit 1
    --gradient_checkpointing "${CHECKPOINTING:-True}"
    --lazy_preprocess True
)

launch() {
    local where=(--standalone)
    if [[ ${NNODES:-1} -gt 1 ]]; then
        where=(--nnodes "$NNODES" --node_rank "${NODE_RANK:?set NODE_RANK on each machine}"
            --master_addr "${MASTER_ADDR:?set MASTER_ADDR to the first machine}"
            --master_port "${MASTER_PORT:-29500}")
    fi
    "$PYTHON" -m torch.distributed.run "${where[@]}" \
        --nproc_per_node "$NPROC" -m llava.train.train_mem ${DEEPSPEED:+--deepspeed "$DEEPSPEED"} \
        "${COMMON[@]}" "$@"
}
