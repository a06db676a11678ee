"""Answer a file of questions: ``questions.jsonl`` in, ``answers.jsonl`` out, in the order of the questions."""

from __future__ import annotations

import argparse
import logging
from functools import partial

from dyvte.cli import run
from dyvte.engine.model import model_name_of
from dyvte.engine.questions import JSON_LINES, QuestionFormat
from dyvte.engine.run import answer_items, get_chunk, question_parser, split_list

logger = logging.getLogger(__name__)

__all__ = ["build_parser", "eval_model", "get_chunk", "split_list"]


def answer_file(questions: QuestionFormat, args: argparse.Namespace) -> None:
    """Answer the questions of ``args.question_file``, of this chunk, that the answers file does not hold yet."""
    template, name = args.conv_mode, model_name_of(args.model_path)
    if "plain" in name and "finetune" not in name.lower() and "mmtag" not in template:
        template = type(template)(template + "_mmtag")  # asked for or not, as before
        logger.warning("a model named 'plain' is asked in conversation mode %s", template)
    answer_items(args, questions.read(args), template)


build_parser, eval_model = partial(question_parser, JSON_LINES), partial(answer_file, JSON_LINES)

if __name__ == "__main__":
    run(build_parser(), eval_model)
