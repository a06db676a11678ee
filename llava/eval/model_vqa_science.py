"""Answer ScienceQA's questions: a JSON list of conversations in, ``answers.jsonl`` out, in the same order."""

from functools import partial

from dyvte.benchmarks.sqa_questions import CONVERSATIONS
from dyvte.cli import run
from dyvte.engine.run import get_chunk, question_parser, split_list
from llava.eval.model_vqa_loader import answer_file

__all__ = ["build_parser", "eval_model", "get_chunk", "split_list"]

build_parser, eval_model = partial(question_parser, CONVERSATIONS), partial(answer_file, CONVERSATIONS)

if __name__ == "__main__":
    run(build_parser(), eval_model)
