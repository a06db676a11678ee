# Sourced by the training scripts: goes to the repository's root and defines `launch`, which runs
# llava.train.train_mem under torchrun with the arguments it gets. Relative paths are relative to that root.
#
#   PYTHON     interpreter                              (default: .venv/bin/python where it exists, else python)
#   NPROC      processes on this machine                (default: one per GPU, at least one)
#   DEEPSPEED  DeepSpeed config, empty for plain DDP
#   NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT         several machines

cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if [[ -z ${PYTHON:-} ]]; then
    if [[ -x .venv/bin/python ]]; then PYTHON=.venv/bin/python; else PYTHON=python; fi
fi
NPROC=${NPROC:-$("$PYTHON" -c 'import torch; print(max(1, torch.cuda.device_count()))')}
if [[ -z ${BF16:-} ]]; then
    # bf16 wherever there is a GPU; float32 on a CPU, where small models train better in it
    BF16=$("$PYTHON" -c 'import torch; print(torch.cuda.is_available())')
fi

launch() {
    local where=(--standalone)
    if [[ ${NNODES:-1} -gt 1 ]]; then
        where=(--nnodes "$NNODES" --node_rank "${NODE_RANK:?set NODE_RANK on each machine}"
            --master_addr "${MASTER_ADDR:?set MASTER_ADDR to the first machine}"
            --master_port "${MASTER_PORT:-29500}")
    fi
    local deepspeed=()
    if [[ -n ${DEEPSPEED:-} ]]; then deepspeed=(--deepspeed "$DEEPSPEED"); fi
    PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" "$PYTHON" -m torch.distributed.run "${where[@]}" \
        --nproc_per_node "$NPROC" -m llava.train.train_mem ${deepspeed[@]+"${deepspeed[@]}"} "$@"
}
