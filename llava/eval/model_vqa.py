"""Answer a file of open questions (MM-Vet, LLaVA-Bench): ``model_vqa_loader`` with longer answers."""

from __future__ import annotations

import argparse

from dyvte.engine.run import get_chunk, run, split_list
from llava.eval import model_vqa_loader
from llava.eval.model_vqa_loader import eval_model, read_items

MAX_NEW_TOKENS = 1024

__all__ = ["build_parser", "eval_model", "get_chunk", "read_items", "split_list"]


def build_parser() -> argparse.ArgumentParser:
    """LLaVA's flags, and those of the exit method."""
    return model_vqa_loader.build_parser(max_new_tokens=MAX_NEW_TOKENS)


if __name__ == "__main__":
    run(build_parser(), eval_model)
