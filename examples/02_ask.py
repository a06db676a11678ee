"""Ask Tiny-LLaVA, which ships with this project, one question about an image.

python examples/02_ask.py
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from dyvte.engine.answer import Answerer, describe_exit
from dyvte.engine.model import ModelOptions
from dyvte.engine.openers import open_model
from dyvte.engine.questions import Question

TINY = Path(__file__).parents[1] / "playground/tiny"

chat = open_model(ModelOptions(str(TINY / "model"), gates=str(TINY / "gates"), device="cpu"))
answerer = Answerer(chat)

image = Image.open(TINY / "example.jpg")
answers = answerer.ask([Question("What digit is red?", [image]), Question("Is there a blue digit?", [image])])
for answer in answers:
    print(answer.text)
    print(describe_exit(answer.report))
