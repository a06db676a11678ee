"""Weights in 8 or 4 bits, for loading and for training.

Called by :mod:`llava.model.builder` and :mod:`llava.train.prepare`.
"""

from __future__ import annotations

import importlib.util

import torch
from transformers import BitsAndBytesConfig


def quantization_config(
    bits: int,
    compute_dtype: torch.dtype = torch.float16,
    double_quant: bool = True,
    quant_type: str = "nf4",
    skip_modules: list[str] | None = None,
) -> BitsAndBytesConfig:
    """What ``from_pretrained`` takes as ``quantization_config``.

    Args:
        bits: 4 or 8.
        compute_dtype, double_quant, quant_type: of 4 bits.
        skip_modules: modules that keep their precision; transformers' choice by default.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("8 and 4 bits need bitsandbytes: pip install 'dyvte[quant]'")
    return BitsAndBytesConfig(
        load_in_8bit=bits == 8,
        load_in_4bit=bits == 4,
        llm_int8_skip_modules=skip_modules,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_quant_type=quant_type,
    )
