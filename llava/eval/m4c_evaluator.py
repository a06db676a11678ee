"""LLaVA's names for the TextVQA evaluator; the work is done in ``dyvte.benchmarks.vqa_text``."""

from __future__ import annotations

from typing import Any

from dyvte.benchmarks.benchmark import mean
from dyvte.benchmarks.vqa_text import (
    leave_one_out_accuracy,
    normalise,
    normalise_words,
    separate_words,
    strip_punctuation,
)


class EvalAIAnswerProcessor:
    """Normalises one answer as the EvalAI server of TextVQA does."""

    def __call__(self, item: str) -> str:
        return normalise(item)

    def word_tokenize(self, word: str) -> str:
        return separate_words(word)

    def process_punctuation(self, in_text: str) -> str:
        return strip_punctuation(in_text)

    def process_digit_article(self, in_text: str) -> str:
        return normalise_words(in_text)


class TextVQAAccuracyEvaluator:
    """Mean leave-one-out accuracy of predictions, a fraction."""

    def __init__(self) -> None:
        self.answer_processor = EvalAIAnswerProcessor()

    def eval_pred_list(self, pred_list: list[dict[str, Any]]) -> float:
        """``pred_list`` holds dicts of ``pred_answer`` (a string) and ``gt_answers`` (list of strings)."""
        return mean(
            [
                leave_one_out_accuracy(
                    self.answer_processor(entry["pred_answer"]),
                    [self.answer_processor(answer) for answer in entry["gt_answers"]],
                )
                for entry in pred_list
            ]
        )
