"""ScienceQA's problems as question and answer texts for training.

A format such as ``QCM-LEA`` names what stands in the question and in the answer, in order: Q question, C context
(the hint), M multiple choice, L lecture, E explanation (the solution), A answer; P puts lecture and explanation into
lines of their own. In questions, lecture and explanation stand after ``BECAUSE:``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

OPTIONS = ("A", "B", "C", "D", "E")
INPUT_FORMATS = ("CQM", "QCM", "QCML", "QCME", "QCMLE", "QCLM", "QCEM", "QCLEM")
OUTPUT_FORMATS = ("A", "AL", "AE", "ALE", "AEL", "LA", "EA", "LEA", "ELA", "LEPA")

# LLaVA's converter has the two texts the wrong way round here; data made with it, and so these, keep that.
_SWAPPED = {"AL": "AE", "AE": "AL"}


def build_prompt_chatbot(
    problems: dict[str, dict[str, Any]], ids: Iterable[str], prompt_format: str
) -> dict[str, tuple[str, str]]:
    """(question, answer) by id, as ``Question: ...`` (or ``Context: ...``) and ``Answer: ...``.

    Raises:
        ValueError: there is no such format, or a problem is missing or lacks a field.
    """
    input_format, output_format = split_format(prompt_format)
    pairs = {}
    for name in ids:
        try:
            problem = problems[name]
            pairs[name] = (input_of(problem, input_format), output_of(problem, output_format))
        except (KeyError, IndexError, AttributeError) as error:
            raise ValueError(
                f"problem {name!r} is missing, or lacks a field or an option ({error!r})"
            ) from None
    return pairs


def split_format(prompt_format: str) -> tuple[str, str]:
    """The two halves of a format.

    Raises:
        ValueError: there is no such format.
    """
    first, _, second = prompt_format.partition("-")
    if first not in INPUT_FORMATS or second not in OUTPUT_FORMATS:
        raise ValueError(
            f"unknown format {prompt_format!r}: join one of {', '.join(INPUT_FORMATS)} "
            f"and one of {', '.join(OUTPUT_FORMATS)} by a hyphen"
        )
    return first, second


def input_of(problem: dict[str, Any], letters: str) -> str:
    """The question, a line for each part."""
    reasons = _reasons_of(problem)
    choices = " ".join(f"({OPTIONS[place]}) {choice}" for place, choice in enumerate(problem["choices"]))
    lines = {
        "Q": f"Question: {problem['question']}",
        "C": f"Context: {problem['hint'].strip() or 'N/A'}",
        "M": f"Options: {choices}",
        "B": "BECAUSE: " + " ".join(reasons[letter] for letter in letters if letter in reasons),
    }
    order = letters.replace("LE", "B").replace("L", "B").replace("E", "B")
    return _tidy("\n".join(lines[letter] for letter in order) + "\n")


def output_of(problem: dict[str, Any], letters: str) -> str:
    """The answer."""
    reasons, letter = _reasons_of(problem), OPTIONS[problem["answer"]]
    if letters == "LEPA":
        return _in_lines(reasons["L"], reasons["E"], letter)
    letters = _SWAPPED.get(letters, letters)
    because = " BECAUSE:" if letters[0] == "A" and len(letters) > 1 else ""
    texts = {**reasons, "A": f"The answer is {letter}.{because}"}
    return _tidy("Answer: " + " ".join(texts[letter] for letter in letters))


def _reasons_of(problem: dict[str, Any]) -> dict[str, str]:
    """Lecture and explanation; line breaks spelt as backslash and n become real ones."""
    return {
        letter: problem[field].replace("\\n", "\n") for letter, field in (("L", "lecture"), ("E", "solution"))
    }


def _in_lines(lecture: str, solution: str, letter: str) -> str:
    parts = (("LECTURE", lecture), ("SOLUTION", solution))
    lines = [f"{title}: {text}" for title, text in parts if text.strip()]
    return _tidy("\n".join([*lines, "###", f"ANSWER: {letter}."]))


def _tidy(text: str) -> str:
    """Pairs of blanks as one, and no ``BECAUSE:`` without a reason."""
    text = text.replace("  ", " ").strip()
    return text.replace("BECAUSE:", "").strip() if text.endswith("BECAUSE:") else text
