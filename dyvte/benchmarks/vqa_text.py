"""Answer comparison of TextVQA and VQAv2: the text normalisation of the M4C evaluator, and leave-one-out accuracy.

Called by :mod:`dyvte.benchmarks.textvqa` and :mod:`dyvte.benchmarks.vqav2`. Published numbers depend on every quirk
of the original, mistakes included: none may be corrected.
"""

from __future__ import annotations

import re

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}}
ARTICLES = {"a", "an", "the"}
HUMANS_FOR_FULL_CREDIT = 3

DIGITS_WITH_COMMAS = re.compile(r"\d,+\d")
"""The M4C evaluator's pattern; VQAv2's evaluators match exactly one comma."""

# A period stays before a digit. The original also tests what stands before it, but by a mistyped pattern.
_PERIOD = re.compile(r"\.(?!\d)")
# The original passes a regular-expression flag (value 32) where ``sub`` expects the number of replacements.
_MOST_PERIODS = 32

# Words whose spelling without any apostrophe stands for the spelling with it.
_WITHOUT_APOSTROPHE = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd "
    "how'll how's I'm I've isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've "
    "o'clock oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's "
    "something'd something'll that's there'd there're there's they'd they'll they're they've 'twas wasn't "
    "we've weren't what'll what're what's what've when's where'd where's where've who'd who'll who's "
    "who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've"
)


def _contractions() -> dict[str, str]:
    table = {word.replace("'", ""): word for word in _WITHOUT_APOSTROPHE.split()}
    for verb in ("could", "had", "might", "should", "would"):
        table[f"{verb}n'tve"] = table[f"{verb}nt've"] = f"{verb}n't've"
    people = ("he", "I", "it", "she", "somebody", "someone", "something", "there", "they", "we", "who", "you")
    for subject in people:
        table[f"{subject}d've"] = table[f"{subject}'dve"] = f"{subject}'d've"
    table["yall'll"] = table["y'allll"] = "y'all'll"
    table["yall'd've"] = table["y'alld've"] = table["y'all'dve"] = "y'all'd've"
    table["ow's'at"] = table["'ows'at"] = table["'ow'sat"] = "'ow's'at"
    # The last one is a slip of the original that published scores contain.
    table.update({"let's": "let's", "she's": "she's", "somebody'd": "somebodyd"})
    return table


CONTRACTIONS = _contractions()


def normalise(answer: str) -> str:
    """An answer as the M4C evaluator compares it; empty for ``the`` or ``?``."""
    text = separate_words(answer).replace("\n", " ").replace("\t", " ").strip()
    return normalise_words(strip_punctuation(text))


def separate_words(answer: str) -> str:
    """The M4C evaluator's first step: lower case, no commas and question marks, ``'s`` a word of its own."""
    return answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()


def strip_punctuation(text: str, digits_with_comma: re.Pattern[str] = DIGITS_WITH_COMMAS) -> str:
    """Delete each punctuation mark that is beside a blank anywhere in ``text``; replace each other mark by a blank.

    Where ``digits_with_comma`` matches, all marks are deleted.
    """
    delete_all = digits_with_comma.search(text) is not None
    result = text
    for mark in PUNCTUATION:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_blank or delete_all else " ")
    return _PERIOD.sub("", result, count=_MOST_PERIODS)


def normalise_words(text: str) -> str:
    """Lower case, number words as digits, no articles, contractions with their apostrophes, single blanks."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def leave_one_out_accuracy(prediction: str, human_answers: list[str]) -> float:
    """Mean over the humans of min(1, agreement with the others / 3); all answers come normalised."""
    agree = [answer == prediction for answer in human_answers]
    return mean_credit([sum(agree) - own for own in agree])


def mean_credit(agreeing: list[int]) -> float:
    """The same, from how many of the others agree with the prediction, for each human."""
    # The whole number 1, as in the original: from Python 3.12 on, sums of floats alone round otherwise.
    credits = [min(1, others / HUMANS_FOR_FULL_CREDIT) for others in agreeing]
    return sum(credits) / len(credits)
