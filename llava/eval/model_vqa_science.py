"""Answer ScienceQA's questions: a JSON list of conversations in, ``answers.jsonl`` out, in the same order."""

import argparse
from functools import partial

from dyvte.benchmarks.sqa import CONVERSATIONS
from dyvte.cli import run
from dyvte.engine.run import get_chunk, question_parser, split_list
from llava.eval.model_vqa_loader import answer_file

__all__ = ["build_parser", "eval_model", "get_chunk", "split_list"]

eval_model = partial(answer_file, CONVERSATIONS)


def build_parser() -> argparse.ArgumentParser:
    parser = question_parser(CONVERSATIONS)
    parser.set_defaults(evaluator="model_vqa_science")  # VILA and InternVL do not pad images here
    return parser


if __name__ == "__main__":
    run(build_parser(), eval_model)
