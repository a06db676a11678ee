"""Answer a file of open questions (MM-Vet, LLaVA-Bench): ``model_vqa_loader`` with longer answers."""

from functools import partial

from dyvte.cli import run
from dyvte.engine.questions import OPEN_QUESTIONS
from dyvte.engine.run import get_chunk, question_parser, split_list
from llava.eval.model_vqa_loader import eval_model

__all__ = ["build_parser", "eval_model", "get_chunk", "split_list"]

build_parser = partial(question_parser, OPEN_QUESTIONS)

if __name__ == "__main__":
    run(build_parser(), eval_model)
