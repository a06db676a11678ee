"""As ``llava.train.train``, with FlashAttention where it is installed and a GPU is there to run it."""

from __future__ import annotations

import importlib.util
import logging

import torch

from llava.train.train import train

logger = logging.getLogger(__name__)


def attention_implementation() -> str | None:
    """``flash_attention_2`` where it can run, else None: the model's default (SDPA)."""
    if torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None:
        return "flash_attention_2"
    logger.warning("flash-attn or a GPU is missing, so attention runs on PyTorch's SDPA")
    return None


if __name__ == "__main__":
    train(attn_implementation=attention_implementation())
