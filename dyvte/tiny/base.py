"""The language model that Tiny-LLaVA starts from: a deep, thin Llama with random weights, and the tokenizer.

Matrices have variance 1 / inputs; those that write into the residual stream (``o_proj``, ``down_proj``) are
divided by sqrt(2 * layers) besides, so that the stream's size does not grow with depth.

    python -m dyvte.tiny.base --tokenizer DIR --out DIR
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from dyvte.cli import run
from dyvte.tiny.tokenizer import FILES as TOKENIZER_FILES

_EMBEDDING_STD = 0.2  # a choice


def build(
    vocabulary: int, hidden: int = 128, layers: int = 20, heads: int = 4, width: int = 352
) -> LlamaForCausalLM:
    """A Llama with fresh weights; seed torch before for reproducible ones."""
    shape: dict[str, Any] = {"num_attention_heads": heads, "num_key_value_heads": heads}
    shape |= {"vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": width}
    tokens: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    others: dict[str, Any] = {"max_position_embeddings": 512, "rms_norm_eps": 1e-5}
    config = LlamaConfig(num_hidden_layers=layers, tie_word_embeddings=False, **shape, **tokens, **others)
    model = LlamaForCausalLM(config)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            std = module.in_features**-0.5
            if name.endswith(("o_proj", "down_proj")):
                std /= (2 * layers) ** 0.5
            nn.init.normal_(module.weight, std=std)
    embeddings: Any = model.get_input_embeddings()
    nn.init.normal_(embeddings.weight, std=_EMBEDDING_STD)
    return model


def write_base(args: argparse.Namespace) -> None:
    """Build the model and write it with its tokenizer."""
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    model = build(len(tokenizer), args.hidden, args.layers, args.heads, args.width)
    model.save_pretrained(args.out)
    for name in TOKENIZER_FILES if args.tokenizer != args.out else ():
        shutil.copyfile(args.tokenizer / name, args.out / name)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters written to {args.out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    tokenizer = "folder that dyvte.tiny.tokenizer wrote"
    parser.add_argument("--tokenizer", type=Path, required=True, help=tokenizer)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int, default=352, help="MLP width")
    for name, default in {"hidden": 128, "layers": 20, "heads": 4, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    run(parser, write_base)


if __name__ == "__main__":
    main()
