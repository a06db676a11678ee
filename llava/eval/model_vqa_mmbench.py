"""Answer an MMBench table (TSV with images inside), with MMBench's options and hints in the question."""

from functools import partial

from dyvte.benchmarks.mmbench_questions import MMBENCH_FORMAT
from dyvte.cli import run
from dyvte.engine.run import get_chunk, question_parser, split_list
from llava.eval.model_vqa_loader import answer_file

__all__ = ["build_parser", "eval_model", "get_chunk", "split_list"]

build_parser, eval_model = partial(question_parser, MMBENCH_FORMAT), partial(answer_file, MMBENCH_FORMAT)

if __name__ == "__main__":
    run(build_parser(), eval_model)
