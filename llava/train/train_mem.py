"""As ``llava.train.train``, with FlashAttention where it is installed and a GPU is there to run it."""

from __future__ import annotations

import importlib.util
import logging

import torch

from dyvte.cli import one_line_errors
from llava.train.train import PROG, train

logger = logging.getLogger(__name__)


if __name__ == "__main__":
    fast = torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None
    if not fast:
        logger.warning("flash-attn or a GPU is missing, so attention runs on PyTorch's SDPA")
    with one_line_errors(PROG):
        train(attn_implementation="flash_attention_2" if fast else None)
