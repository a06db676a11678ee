"""From command-line flags to a loaded model with the exit method they ask for.

Called from most of the project.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import fields, replace
from typing import Any, TypeVar

from dyvte.decoding.attention.plan import AUTO, KERNELS
from dyvte.decoding.graphs import Graphs
from dyvte.engine.answer import Answerer
from dyvte.engine.model import DefaultTemplate, Generation, ModelOptions
from dyvte.engine.openers import open_model
from dyvte.gates.exit import LearnedExit
from dyvte.gates.hub import gates_folder
from dyvte.methods import METHODS, OWN_FLAGS, make_policy, parse_method

T = TypeVar("T")
TEMPERATURE = "of sampling (%(default)s); 0: the most probable token"
DTYPES = ("auto", "float32", "bfloat16", "float16")


def add_model_arguments(parser: argparse.ArgumentParser, conv_mode: str | None, max_new_tokens: int) -> None:
    """LLaVA's flags for the model, its prompt template and how it generates, and those of the exit method."""
    parser.add_argument(
        "--model-path",
        type=os.path.expanduser,
        default="facebook/opt-350m",
        help="folder or Hub id (LLaVA's default: %(default)s)",
    )
    add_base_argument(parser)
    add_template_arguments(parser, conv_mode)
    parser.add_argument("--temperature", type=float, default=0.2, help=TEMPERATURE)
    parser.add_argument(
        "--top_p", type=float, help="sample among the tokens that have this probability together"
    )
    parser.add_argument("--num_beams", type=int, default=1, help="beams of beam search (%(default)s)")
    parser.add_argument(
        "--max_new_tokens", type=int, default=max_new_tokens, help="most tokens of an answer (%(default)s)"
    )
    add_method_arguments(parser)


def add_base_argument(parser: argparse.ArgumentParser) -> None:
    """LLaVA's flag for checkpoints that are a part of a model."""
    parser.add_argument(
        "--model-base",
        type=os.path.expanduser,
        help="the language model, where --model-path holds LoRA weights or a projector alone",
    )


def add_loading_arguments(parser: argparse.ArgumentParser) -> None:
    """LLaVA's flags for how a checkpoint is loaded."""
    add_base_argument(parser)
    parser.add_argument("--load-8bit", action="store_true", help="quantize to 8 bits with bitsandbytes")
    parser.add_argument("--load-4bit", action="store_true", help="quantize to 4 bits with bitsandbytes")


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
    parser.add_argument(
        "--gates",
        type=gates_folder,
        help="folder with gates, or org/name[@revision] on the hub; default: the checkpoint's own",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="exit above this gate probability; default: what the gates were calibrated to, else 0.5",
    )
    parser.add_argument("--exit-layer", type=int, help="zero-based layer for --method fixed")
    add_device_arguments(parser)
    parser.add_argument(
        "--cuda-graphs",
        action=argparse.BooleanOptionalAction,
        help="record layers and decoding steps as CUDA graphs, and replay them: faster at small batches; default: on "
        "a GPU, where the decoder can be recorded",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the decoder layers within CUDA graphs: some seconds for each new length of prompts",
    )


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags for where, in which precision and with which attention to run."""
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="auto: float16, on CPU float32")
    parser.add_argument("--device", default="cuda", help="cuda falls back to cpu where there is none")
    parser.add_argument(
        "--attn-implementation",
        choices=[*KERNELS, AUTO],
        help="attention kernel; auto, the default: on a GPU in half precision torch_varlen or flash_attention_2, "
        "whichever is there, else sdpa",
    )


def add_template_arguments(parser: argparse.ArgumentParser, default: str | None) -> None:
    """The flags for the prompt template of LLaVA's checkpoints."""
    parser.add_argument(
        "--conv-mode",
        default=None if default is None else DefaultTemplate(default),
        help=f"prompt template ({default or 'the one that the checkpoint asks for'}); models of other families bring "
        "their own, and take none",
    )
    parser.add_argument(
        "--default-conv-mode",
        dest="conv_mode",
        type=DefaultTemplate,
        default=argparse.SUPPRESS,
        help="the same, for models that bring none",
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
    method = getattr(args, "method", None)
    names = parse_method(method) if method else ()
    # a shell may give several settings as one argument
    settings = [setting for given in getattr(args, "method_config", None) or [] for setting in given.split()]
    exit_layer, threshold = getattr(args, "exit_layer", None), getattr(args, "threshold", None)
    options = replace(flags_of(ModelOptions, args), template=template)
    if options.gates and names and "dyvte" not in names:
        raise ValueError(f"--gates has no use with --method {method}")
    # what does not fit together is refused before a model is loaded
    wanted, compiled = getattr(args, "cuda_graphs", None), bool(getattr(args, "compile", False))
    if compiled and wanted is False:
        raise ValueError("--compile compiles layers within CUDA graphs: leave out --no-cuda-graphs")
    generation = flags_of(Generation, args)
    make_policy([name for name in names if name != "dyvte"] or ["none"], settings, exit_layer=exit_layer)
    chat = open_model(options)
    handle = chat.handle
    if handle is None:
        if method not in (None, "none"):
            raise ValueError(f"--method {method} needs images: {args.model_path} is a language model")
        return Answerer(chat, generation)
    learned = handle.policy.gates if isinstance(handle.policy, LearnedExit) else None
    try:
        names = names or ("none" if learned is None else "dyvte",)
        handle.policy = make_policy(
            names, settings, gates=learned, threshold=threshold, exit_layer=exit_layer
        )
        if wanted is False:
            handle.graphs = None
        elif wanted or compiled:
            handle.graphs = Graphs(compile=compiled)
    except ValueError:
        handle.detach()  # a refused method leaves the model as it was
        raise
    return Answerer(chat, generation)


def flags_of(kind: type[T], args: Any) -> T:
    """A dataclass filled with the flags that have its fields' names; those not given keep their defaults."""
    flags = {field.name: getattr(args, field.name, None) for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in flags.items() if value is not None})
