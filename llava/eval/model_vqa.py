"""Answer a file of open questions (MM-Vet, LLaVA-Bench): ``model_vqa_loader`` with longer answers."""

import argparse

from dyvte.cli import run
from dyvte.engine.questions import OPEN_QUESTIONS
from dyvte.engine.run import get_chunk, question_parser, split_list
from llava.eval.model_vqa_loader import eval_model

__all__ = ["build_parser", "eval_model", "get_chunk", "split_list"]


def build_parser() -> argparse.ArgumentParser:
    parser = question_parser(OPEN_QUESTIONS)
    parser.set_defaults(evaluator="model_vqa")  # VILA and InternVL do not pad images here
    return parser


if __name__ == "__main__":
    run(build_parser(), eval_model)
