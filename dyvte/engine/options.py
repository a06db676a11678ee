"""From command-line flags to a loaded model with the exit method they ask for."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from dyvte.decoding.graphs import Graphs
from dyvte.engine.answer import Answerer
from dyvte.engine.model import ChatModel, Generation, ModelOptions
from dyvte.engine.openers import open_model
from dyvte.families.base import adapter_for
from dyvte.gates.exit import LearnedExit
from dyvte.methods import METHODS, OWN_FLAGS, make_policy, parse_method

DTYPES = ("auto", "float32", "bfloat16", "float16")


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags for which exit to use, and where and in which precision to run."""
    parser.add_argument(
        "--method",
        type=method_name,
        metavar="METHOD",
        help="none: visual tokens stay; dyvte: gates decide; fixed: exit at --exit-layer; "
        f"{', '.join(name for name in METHODS if name not in OWN_FLAGS)}: see docs/method.md; several joined by + "
        "act in this order (dyvte+fastv). "
        "Default: dyvte where --gates or the checkpoint brings gates, else none",
    )
    parser.add_argument(
        "--method-config",
        nargs="+",
        metavar="KEY=VALUE",
        help="settings of the method, such as k=3 r=0.5; fastv.r=0.5 where several methods have r",
    )
    parser.add_argument("--gates", help="folder with gates; default: the checkpoint's own")
    parser.add_argument(
        "--threshold",
        type=float,
        help="exit above this gate probability; default: what the gates were calibrated to, else 0.5",
    )
    parser.add_argument("--exit-layer", type=int, help="zero-based layer for --method fixed")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="auto: float16, on CPU float32")
    parser.add_argument("--device", default="cuda", help="cuda falls back to cpu where there is none")
    parser.add_argument("--attn-implementation", help="sdpa, flash_attention_2 or eager")
    parser.add_argument(
        "--cuda-graphs",
        action="store_true",
        help="record decoding steps and the layers after an exit as CUDA graphs: pays for small batches and answers "
        "of many tokens",
    )


def method_name(text: str) -> str:
    """The name of a method, or of several joined by ``+``.

    Raises:
        argparse.ArgumentTypeError: there is no such method, or they do not go together.
    """
    try:
        parse_method(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def open_answerer(args: Any, template: str | None) -> Answerer:
    """The model that command-line arguments ask for, with its policy, and how it is to answer.

    Args:
        args: parsed flags, or any object with some of them; a flag that it lacks takes its default.
        template: name of the prompt template; by default the one that the checkpoint asks for.

    Raises:
        ValueError: when the method's arguments do not fit together or do not fit the model, or there is no
            such prompt template.
        FileNotFoundError: when files are missing.
    """
    generation = Generation(
        max_new_tokens=_option(args, "max_new_tokens", 128),
        temperature=_option(args, "temperature", 0.0),
        top_p=_option(args, "top_p"),
        num_beams=_option(args, "num_beams", 1),
    )
    return Answerer(open_chat_model(args, template), generation)


def open_chat_model(args: Any, template: str | None) -> ChatModel:
    """As :func:`open_answerer`, without a way to answer."""
    method, gates = _option(args, "method"), _option(args, "gates")
    names = parse_method(method) if method else ()
    settings, exit_layer = _settings(args), _option(args, "exit_layer")
    if gates and names and "dyvte" not in names:
        raise ValueError(f"--gates has no use with --method {method}")
    # what does not fit together is refused before a model is loaded
    make_policy([name for name in names if name != "dyvte"] or ["none"], settings, exit_layer=exit_layer)
    chat = open_model(
        ModelOptions(
            args.model_path,
            args.model_base,
            template,
            gates,
            device=_option(args, "device", "cuda"),
            dtype=_option(args, "dtype", "auto"),
            attn_implementation=_option(args, "attn_implementation"),
            load_8bit=_option(args, "load_8bit", False),
            load_4bit=_option(args, "load_4bit", False),
            evaluator=_option(args, "evaluator"),
        )
    )
    handle = chat.handle
    if handle is None:
        if method not in (None, "none"):
            raise ValueError(
                f"--method {method} needs a model with images: {args.model_path} is a language model"
            )
        return chat
    learned = handle.policy.gates if isinstance(handle.policy, LearnedExit) else None
    threshold = _option(args, "threshold")
    try:
        names = names or (("dyvte",) if learned is not None else ("none",))
        handle.policy = make_policy(
            names, settings, gates=learned, threshold=threshold, exit_layer=exit_layer
        )
        graphs = Graphs() if _option(args, "cuda_graphs", False) else None
        if graphs is not None:
            graphs.check(adapter_for(chat.model).decoder(chat.model))
    except ValueError:
        handle.detach()  # a refused method leaves the model as it was
        raise
    handle.graphs = graphs
    handle.run = replace(handle.run, graphs=graphs is not None)
    return chat


def _settings(args: Any) -> list[str]:
    """The method's settings, one ``key=value`` each; a shell may give several as one argument."""
    return [setting for given in _option(args, "method_config", []) for setting in given.split()]


def _option(args: Any, name: str, default: Any = None) -> Any:
    value = getattr(args, name, None)
    return default if value is None else value
