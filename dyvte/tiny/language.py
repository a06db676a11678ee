"""The same questions in fuller language: answers that are sentences, explanations, and descriptions of a scene.

For language models that can already speak; Small-LLaVA learns from these beside the short answers. A sentence is made
from the question's words and its answer, an explanation from what the scene holds besides.

Called by :mod:`dyvte.tiny.data`.
"""

from __future__ import annotations

import re

import numpy as np

from dyvte.tiny.questions import Question
from dyvte.tiny.scenes import Scene, Thing

DESCRIBE = "Describe the image."
EXPLAIN = "Explain your answer."

# kind -> (the question, its answer as a sentence) for each form of question that the kind has
_SENTENCES: dict[str, tuple[tuple[str, str], ...]] = {
    "digit_at": ((r"What digit is in the (.+)\?", r"The digit in the \1 is a {}."),),
    "color_at": ((r"What color is the digit in the (.+)\?", r"The digit in the \1 is {}."),),
    "color_of": ((r"What color is the (.+)\?", r"The \1 is {}."),),
    "digit_of": ((r"What digit is (.+)\?", r"The \1 digit is a {}."),),
    "place": ((r"Where is the (.+)\?", r"The \1 is in the {} of the image."),),
    "presence": ((r"Is there a (.+) in the image\?", r"There is {} \1 in the image."),),
    "count_color": ((r"How many digits are (.+)\?", r"The number of digits that are \1 is {}."),),
    "count_all": ((r"How many digits are there\?", r"There are {} digits in the image."),),
    "neighbor": ((r"What digit is directly (.+)\?", r"The digit directly \1 is a {}."),),
    "count_side": ((r"How many digits are (.+)\?", r"The number of digits that are \1 is {}."),),
    "higher": ((r"Which digit is higher, (.) or (.)\?", r"Of the \1 and the \2, the {} is higher."),),
    "read_line": ((r"Read the digits in the (.+)\.", r"The digits in the \1 are {}."),),
    "add": ((r"What is the (.+) digit plus the (.+) digit\?", r"The \1 digit plus the \2 digit makes {}."),),
    "larger": ((r"Which digit is larger, (.+) or (.+)\?", r"Of the digits in the \1 and the \2, {} is larger."),),
    "parity": ((r"Is the digit in the (.+) even or odd\?", r"The digit in the \1 is {}."),),
    "arithmetic": (
        (r"What is (.) plus (.)\?", r"\1 plus \2 is {}."),
        (r"Which is larger, (.) or (.)\?", r"Of \1 and \2, {} is larger."),
        (r"Is (.) even or odd\?", r"\1 is {}."),
    ),
}  # fmt: skip


def sentence(question: Question) -> str | None:
    """The answer as a sentence; None for a choice, whose answer is a letter."""
    answer = question.answer
    if question.kind == "presence":
        answer = "a" if answer == "yes" else "no"
    for asked, said in _SENTENCES.get(question.kind, ()):
        if found := re.fullmatch(asked, question.text):
            return found.expand(said).format(answer)
    return None


def explanation(scene: Scene, question: Question) -> str | None:
    """What the answer follows from, and the answer; None for kinds with nothing to explain."""
    answer, kind = question.answer, question.kind
    if kind == "count_color":
        color = question.text.removeprefix("How many digits are ").removesuffix("?")
        found = [
            f"the {thing.digit} in the {thing.position}" for thing in scene.things if thing.color == color
        ]
        return f"The {color} digits are {_listed(found)}, so there are {answer}." if found else None
    if kind not in ("parity", "larger", "add", "higher"):
        return None
    pattern, _ = _SENTENCES[kind][0]
    found = re.fullmatch(pattern, question.text)
    assert found is not None  # the question is of this kind
    by = {"parity": "position", "larger": "position", "add": "color", "higher": "digit"}[kind]
    first, *second = (_the_one(scene, by, name) for name in found.groups())
    if kind == "parity":
        return f"The digit in the {first.position} is a {first.digit}, and {first.digit} is {answer}."
    if kind == "higher":
        return (
            f"The {first.digit} is in the {first.position} and the {second[0].digit} is in the "
            f"{second[0].position}, so the {answer} is higher."
        )
    words = "{0.color} digit" if kind == "add" else "digit in the {0.position}"
    read = " and ".join(f"the {words.format(thing)} is a {thing.digit}" for thing in (first, *second))
    ends = f"so together they make {answer}" if kind == "add" else f"so {answer} is larger"
    return f"{read[0].upper()}{read[1:]}, {ends}."


def describe(scene: Scene) -> str:
    """All things of a scene in reading order, as prose."""
    things = [f"a {thing.name} in the {thing.position}" for thing in scene.things]
    return f"The image shows {len(things)} digits: {_listed(things)}."


def spoken(scene: Scene, questions: list[Question], rng: np.random.Generator) -> list[tuple[str, str]]:
    """Turns about a scene: short answers where the question asks for one, else sentences; explanations where asked.

    A question without an instruction is answered by a sentence, as a language model does by itself; so, unlike in
    LLaVA-1.5's mix, each question that wants a short answer says so. One scene in three is described as well.
    """
    turns: list[tuple[str, str]] = []
    for question in questions:
        said, why, form = sentence(question), explanation(scene, question), rng.random()
        if said is None or form < 0.5:
            turns.append((question.prompt(), question.answer))
        elif why is not None and form < 0.75:
            turns.append((f"{question.text}\n{EXPLAIN}", why))
        else:
            turns.append((question.text, said))
    if rng.random() < 1 / 3:
        turns.insert(int(rng.integers(len(turns) + 1)), (DESCRIBE, describe(scene)))
    return turns


def _the_one(scene: Scene, attribute: str, value: str) -> Thing:
    """The thing whose attribute has this value; a question names only what is unambiguous."""
    return next(thing for thing in scene.things if str(getattr(thing, attribute)) == value)


def _listed(parts: list[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
