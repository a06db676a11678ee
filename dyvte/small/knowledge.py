"""What a language model still knows of text alone: twenty everyday questions, asked before and after training.

The base is asked as the trained model is, with LLaVA's template and without an image. An answer counts where it holds
the word that it should.

    python -m dyvte.small.knowledge --models BASE TRAINED --out FILE_WITHOUT_SUFFIX
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from dyvte.cli import run
from dyvte.engine.answer import Answerer
from dyvte.engine.model import Generation, ModelOptions
from dyvte.engine.openers import open_model
from dyvte.engine.options import add_template_arguments
from dyvte.engine.questions import Question
from dyvte.io import write_json, write_whole
from dyvte.small.pack import TEMPLATE

QUESTIONS = {
    "What is the capital of France?": "Paris",
    "What is the capital of Italy?": "Rome",
    "What is the capital of Japan?": "Tokyo",
    "Which planet do we live on?": "Earth",
    "What is the largest ocean on Earth?": "Pacific",
    "How many days are there in a week?": "seven|7",
    "How many months are there in a year?": "twelve|12",
    "How many legs does a spider have?": "eight|8",
    "What is two plus two?": "four|4",
    "What is the opposite of hot?": "cold",
    "What is the opposite of up?": "down",
    "What color is the sky on a clear day?": "blue",
    "What color is grass?": "green",
    "What do bees make?": "honey",
    "What do cows drink?": "water",
    "What is frozen water called?": "ice",
    "Who wrote Romeo and Juliet?": "Shakespeare",
    "What gas do humans need to breathe?": "oxygen",
    "Which animal says meow?": "cat",
    "Which season comes after summer?": "autumn|fall",
}
"""Question -> what its answer must hold: words, "|" between those that are equally right."""


def is_right(question: str, answer: str) -> bool:
    """Whether an answer holds the word that it should, upper and lower case alike."""
    return re.search(rf"\b({QUESTIONS[question]})\b", answer, re.IGNORECASE) is not None


def ask(model_path: str, template: str | None) -> dict[str, str]:
    """A model's answer to every question."""
    chat = open_model(ModelOptions(model_path, template=template, device="cpu"))
    answers = Answerer(chat, Generation(max_new_tokens=40)).ask([Question(text, []) for text in QUESTIONS])
    return {text: answer.text.strip() for text, answer in zip(QUESTIONS, answers, strict=True)}


def as_markdown(answers: dict[str, dict[str, str]]) -> str:
    """One row per question, one column per model; a cross marks an answer that is not right."""
    rows = [["question", *answers]]
    for text in QUESTIONS:
        said = [(" ".join(own[text].split()), is_right(text, own[text])) for own in answers.values()]
        rows.append([text, *(words if right else f"✗ {words}" for words, right in said)])
    rows.append(
        ["right", *(f"{sum(is_right(*row) for row in own.items())} of 20" for own in answers.values())]
    )
    head, *body = (f"| {' | '.join(cell.replace('|', '/') for cell in row)} |\n" for row in rows)
    return "".join([head, "|---" * (len(answers) + 1) + "|\n", *body])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", required=True, help="folders; the name of each heads a column")
    parser.add_argument("--out", type=Path, required=True, help="where to write, without .json or .md")
    add_template_arguments(parser, TEMPLATE)

    def action(args: argparse.Namespace) -> None:
        answers = {Path(model).name: ask(model, args.conv_mode or TEMPLATE) for model in args.models}
        write_json(args.out.with_suffix(".json"), answers, indent=2)
        write_whole(args.out.with_suffix(".md"), as_markdown(answers))
        print(as_markdown(answers))

    run(parser, action)


if __name__ == "__main__":
    main()
