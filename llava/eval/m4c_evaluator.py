"""LLaVA's names for the TextVQA evaluator; the work is done in ``dyvte.benchmarks.vqa_text``."""

from __future__ import annotations

from typing import Any

from dyvte.benchmarks import vqa_text
from dyvte.benchmarks.benchmark import mean


class EvalAIAnswerProcessor:
    """Normalises one answer as the EvalAI server of TextVQA does."""

    word_tokenize = staticmethod(vqa_text.separate_words)
    process_punctuation = staticmethod(vqa_text.strip_punctuation)
    process_digit_article = staticmethod(vqa_text.normalise_words)

    def __call__(self, item: str) -> str:
        return vqa_text.normalise(item)


class TextVQAAccuracyEvaluator:
    """Mean leave-one-out accuracy of predictions, a fraction."""

    def __init__(self) -> None:
        self.answer_processor = EvalAIAnswerProcessor()

    def eval_pred_list(self, pred_list: list[dict[str, Any]]) -> float:
        """``pred_list`` holds dicts of ``pred_answer`` (a string) and ``gt_answers`` (list of strings)."""
        normal = self.answer_processor
        pairs = [(normal(one["pred_answer"]), [normal(a) for a in one["gt_answers"]]) for one in pred_list]
        return mean([vqa_text.leave_one_out_accuracy(*pair) for pair in pairs])
