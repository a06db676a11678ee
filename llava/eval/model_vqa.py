"""Answer a file of open questions (MM-Vet, LLaVA-Bench): ``model_vqa_loader`` with longer answers."""

from __future__ import annotations

from llava.eval.model_vqa_loader import build_parser, eval_model, get_chunk, run, split_list

MAX_NEW_TOKENS = 1024

__all__ = ["eval_model", "get_chunk", "split_list"]

if __name__ == "__main__":
    run(build_parser(max_new_tokens=MAX_NEW_TOKENS), eval_model)
