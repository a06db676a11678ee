"""VLMEvalKit with a model of this project: its own ``run.py``, after an entry was added to its list of models.

    python -m dyvte.plugins.vlmeval --model-path MODEL --gates GATES --name dyvte -- --data MME --mode all

VLMEvalKit has no plugins: :func:`run` adds the model to ``vlmeval.config.supported_VLM`` and calls
``vlmeval.run.main``. What follows ``--`` is VLMEvalKit's; ``--model`` is added. It asks one question at a time.
"""

from __future__ import annotations

import argparse
import ssl
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from dyvte import cli
from dyvte.engine.images import load_image
from dyvte.engine.options import add_model_arguments, open_answerer
from dyvte.engine.questions import IMAGE_TOKEN, Question


def model_class(base: type) -> type:
    """The model as VLMEvalKit makes it, derived from its base class."""

    class Dyvte(base):
        """A model of this project with its method; ``options`` are parsed flags."""

        INTERLEAVE = True
        allowed_types = ("text", "image")

        def __init__(self, options: argparse.Namespace, **kwargs: Any) -> None:
            super().__init__()
            self.answerer = open_answerer(options, options.conv_mode)

        def generate_inner(self, message: Sequence[Mapping[str, str]], dataset: str | None = None) -> str:
            """The answer to parts of type text or image, whose value is a text or a path."""
            images = [load_image(part["value"]) for part in message if part["type"] == "image"]
            words = [f"{IMAGE_TOKEN}\n" if part["type"] == "image" else part["value"] for part in message]
            return self.answerer.ask([Question("".join(words), images)])[0].text

    return Dyvte


def run(options: argparse.Namespace) -> None:
    """Start VLMEvalKit's own command with the model in its list.

    Raises:
        ImportError: VLMEvalKit is not installed.
    """
    name = "_create_default_https_context"
    checked = getattr(ssl, name)
    try:
        from vlmeval.config import supported_VLM
        from vlmeval.run import main as evaluate
        from vlmeval.vlm.base import BaseModel
    finally:
        setattr(ssl, name, checked)  # importing vlmeval turns the check of certificates off
    supported_VLM[options.name] = partial(model_class(BaseModel), options)
    sys.argv = ["vlmeval", "--model", options.name, *options.arguments]
    evaluate()


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    given = list(sys.argv[1:] if argv is None else argv)
    at = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.plugins.vlmeval",
        description="Run VLMEvalKit on a model of this project.",
        epilog="What follows -- goes to VLMEvalKit's run.py.",
    )
    add_model_arguments(parser, conv_mode=None, max_new_tokens=128)
    parser.set_defaults(temperature=0.0)
    parser.add_argument("--name", default="dyvte", help="the model's name in VLMEvalKit (%(default)s)")
    parser.set_defaults(arguments=given[at + 1 :])
    with cli.one_line_errors(parser.prog):
        try:
            cli.run(parser, run, given[:at])
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "vlmeval":
                raise
            sys.exit(
                "VLMEvalKit is not installed: pip install ms-vlmeval, or its repository (docs/harnesses.md)"
            )


if __name__ == "__main__":
    main()
