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

    word_tokenize = staticmethod(separate_words)
    process_punctuation = staticmethod(strip_punctuation)
    process_digit_article = staticmethod(normalise_words)

    def __call__(self, item: str) -> str:
        return normalise(item)


class TextVQAAccuracyEvaluator:
    """Mean leave-one-out accuracy of predictions, a fraction."""

    def __init__(self) -> None:
        self.answer_processor = EvalAIAnswerProcessor()

    def eval_pred_list(self, pred_list: list[dict[str, Any]]) -> float:
        """``pred_list`` holds dicts of ``pred_answer`` (a string) and ``gt_answers`` (list of strings)."""
        normal = self.answer_processor
        scores = [
            leave_one_out_accuracy(normal(entry["pred_answer"]), [normal(a) for a in entry["gt_answers"]])
            for entry in pred_list
        ]
        return mean(scores)
