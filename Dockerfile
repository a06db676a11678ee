# The project for GPU nodes: command lines, training, evaluation and the server.
#
#   docker build -t dyvte .
#   docker run --rm --gpus all --shm-size 16g -v "$HOME/.cache/huggingface:/huggingface" \
#       -v "$PWD/playground/data:/dyvte/playground/data" -v "$PWD/checkpoints:/dyvte/checkpoints" \
#       dyvte bash scripts/v1_5/eval/gqa.sh
#
# torch brings its own CUDA libraries; the node supplies the driver.
FROM python:3.12-slim-bookworm

# --compile needs a C compiler; git says which commit a result is of, so .git is in the image
RUN apt-get update && apt-get install -y --no-install-recommends build-essential git && rm -rf /var/lib/apt/lists/*

WORKDIR /dyvte
ENV VENV=/opt/dyvte PATH=/opt/dyvte/bin:$PATH PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HF_HOME=/huggingface

# what is installed, first: a change of the code alone installs nothing again
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY scripts/setup.sh scripts/
COPY dyvte/__init__.py dyvte/
COPY llava/__init__.py llava/
RUN bash scripts/setup.sh eval,study,train,serve

COPY . .
CMD ["dyvte", "--help"]
