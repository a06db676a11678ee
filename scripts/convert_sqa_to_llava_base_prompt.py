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
    input_format, _, output_format = prompt_format.partition("-")
    if input_format not in INPUT_FORMATS or output_format not in OUTPUT_FORMATS:
        raise ValueError(
            f"unknown format {prompt_format!r}: join one of {', '.join(INPUT_FORMATS)} "
            f"and one of {', '.join(OUTPUT_FORMATS)} by a hyphen"
        )
    pairs = {}
    for name in ids:
        try:
            problem = problems[name]
            pairs[name] = (input_of(problem, input_format), output_of(problem, output_format))
        except (KeyError, IndexError, AttributeError) as error:
            missing = f"problem {name!r} is missing, or lacks a field or an option ({error!r})"
            raise ValueError(missing) from None
    return pairs


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
        parts = (("LECTURE", reasons["L"]), ("SOLUTION", reasons["E"]))
        lines = [f"{title}: {text}" for title, text in parts if text.strip()]
        return _tidy("\n".join([*lines, "###", f"ANSWER: {letter}."]))
    letters = _SWAPPED.get(letters, letters)
    because = " BECAUSE:" if letters[0] == "A" and len(letters) > 1 else ""
    texts = {**reasons, "A": f"The answer is {letter}.{because}"}
    return _tidy("Answer: " + " ".join(texts[letter] for letter in letters))


def _reasons_of(problem: dict[str, Any]) -> dict[str, str]:
    """Lecture and explanation; line breaks spelt as backslash and n become real ones."""
    fields = {"L": "lecture", "E": "solution"}
    return {letter: problem[field].replace("\\n", "\n") for letter, field in fields.items()}


def _tidy(text: str) -> str:
    """Pairs of blanks as one, and no ``BECAUSE:`` without a reason."""
    text = text.replace("  ", " ").strip()
    return text.replace("BECAUSE:", "").strip() if text.endswith("BECAUSE:") else text
