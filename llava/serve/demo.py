"""A page on which a model answers questions about an image, with and without exit side by side.

    python -m llava.serve.demo                                 # Tiny-LLaVA, on a CPU as well
    python -m llava.serve.demo --model-path MODEL --gates GATES

The page is for this machine alone, unless ``--host`` or ``--share`` opens it.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from PIL import Image

import llava
from dyvte.cli import run
from dyvte.engine.options import TEMPERATURE, add_loading_arguments, add_method_arguments, open_answerer
from dyvte.report.titles import model_title
from llava.serve.demo_session import Controls, Session
from llava.serve.listen import listen

TINY = Path(llava.__file__).parents[1] / "playground" / "tiny"
"""In a checkout; an installed package has none."""


def main(args: argparse.Namespace) -> None:
    """Load the model, ask it once, and serve the page until Ctrl-C."""
    from llava.serve.demo_page import LOOKS, page_of
    from llava.serve.demo_server import launch

    listen(args.host, args.port).close()  # a taken port is told now, not after minutes of loading
    session, controls = open_session(args)
    example = TINY / "example.jpg"
    page = page_of(session, model_title(args.model_path), controls, example if example.is_file() else None)
    address = launch(page, args.host, args.port, args.share, **LOOKS)
    print(f"The demo is at {address}  (Ctrl-C ends it)", flush=True)
    page.block_thread()


def open_session(args: argparse.Namespace) -> tuple[Session, Controls]:
    """The model, asked once, and the controls as the page shows them at first.

    Raises:
        ValueError, OSError: files are missing or do not fit together, or the model takes no images.
    """
    if args.model_path is None:
        if not TINY.is_dir():
            raise ValueError("Tiny-LLaVA comes with a checkout alone: name another model with --model-path")
        args.model_path, args.gates = str(TINY / "model"), args.gates or str(TINY / "gates")
    unset = {"method": None, "method_config": None, "threshold": None, "exit_layer": None}
    session = Session(open_answerer(argparse.Namespace(**{**vars(args), **unset}), args.conv_mode))
    controls = Controls(
        args.method or session.methods[0],
        session.threshold if args.threshold is None else args.threshold,
        session.num_layers // 2 if args.exit_layer is None else args.exit_layer,
        " ".join(args.method_config or []),
    )
    for _ in session.ask(Image.new("RGB", (64, 64)), [], "What is it?", controls):
        pass  # what cannot answer is told now, and the first question of a visitor is timed as the others are
    return session, controls


def build_parser() -> argparse.ArgumentParser:
    """Flags of the model, of the exit method as the page shows it at first, and of the server."""
    parser = argparse.ArgumentParser(
        description="Ask a model about an image in the browser, with and without exit."
    )
    parser.add_argument(
        "--model-path", type=os.path.expanduser, help="folder or Hub id; Tiny-LLaVA by default"
    )
    parser.add_argument("--conv-mode", help="prompt template (the one that the checkpoint asks for)")
    parser.add_argument("--temperature", type=float, default=0.0, help=TEMPERATURE)
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, help="most tokens of an answer (%(default)s)"
    )
    add_loading_arguments(parser)
    add_method_arguments(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 opens the page to the network (%(default)s)"
    )
    parser.add_argument("--port", type=port_number, default=7860, help="1 to 65535 (%(default)s)")
    parser.add_argument("--share", action="store_true", help="a public address through gradio's servers")
    return parser


def port_number(text: str) -> int:
    """A port as the command line gives it; argparse.ArgumentTypeError where it is none."""
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"a port is a number from 1 to 65535, not {text!r}")
    return int(text)


if __name__ == "__main__":
    run(build_parser(), main)
