"""Choose the gates' threshold on a calibration set, and save it with the gates.

    python -m dyvte.engine.calibrate --model-path MODEL --gates GATES --data-path sample.json --image-folder DIR \
        --conv-mode vicuna_v1 --max-changed 0.02              # at most 2% of the answers change, with 95% confidence
    ... --budget 0.6                                          # or: 60% of the TFLOPs of a prefill without exit
    ... --budget-ms 40                                        # or: 40 ms for a prefill, on average, on this machine

The set is instruction data in LLaVA's format, as ``dyvte.gates.sample`` draws it, of which the first questions are
asked; it should not be what the gates were trained on. The model's own answers (greedy, without exit) are what an
exit must keep: with the answer as given, an exit changes nothing when it changes no argmax at any of its positions.

Run as ``dyvte calibrate``, too.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from dyvte.cli import run
from dyvte.cost.exits import decoder_flops_by_exit
from dyvte.cost.flops import prefill_flops
from dyvte.cost.layers import layer_costs
from dyvte.decoding.policy import NoExit
from dyvte.decoding.trace import ExitTrace
from dyvte.engine import exit_times
from dyvte.engine.answer import Answerer
from dyvte.engine.instructions import image_paths, read_records
from dyvte.engine.model import Batch
from dyvte.engine.options import add_method_arguments, add_template_arguments, open_answerer
from dyvte.engine.questions import Item, check_items
from dyvte.engine.run import prepared_batches
from dyvte.gates.calibration import (
    CONFIDENCE,
    Calibration,
    Outcomes,
    threshold_for_change,
    threshold_for_cost,
)
from dyvte.gates.exit import LearnedExit
from dyvte.gates.gate import ExitGates
from dyvte.gates.hub import hub_name
from dyvte.gates.sample import first_turn
from dyvte.gates.states import PAPER_STATES
from dyvte.gates.supervision import Supervision, supervise

TERA = 1e12


def read_items(data_path: str) -> list[Item]:
    """The first questions of instruction data, those that ``dyvte.gates.sample`` would take.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or nothing usable in it.
    """
    items = []
    for index, record in enumerate(read_records(data_path)):
        cut, _ = first_turn(record)
        if cut is not None:
            head = {"question_id": cut.get("id", index)}
            items.append(Item(head, cut["conversations"][0]["value"], tuple(image_paths(cut)), data_path))
    if not items:
        raise ValueError(f"{data_path} holds no sample with one image, a question and an answer")
    return items


def observe(
    answerer: Answerer, gates: ExitGates, items: Sequence[Item], image_folder: str, batch_size: int
) -> Outcomes:
    """Answer without exit, then look at every exit.

    Args:
        answerer: a model to which ``NoExit`` is attached, answering greedily.
        gates: gates of this model.

    Raises:
        ValueError: no question can have an exit.
    """
    probabilities, kept, costs = [], [], []
    with tqdm(total=len(items), desc="calibration", unit="q") as progress, torch.inference_mode():
        for _, batch in prepared_batches(items, batch_size, answerer.chat, image_folder):
            supervision, trace = supervise_own_answers(answerer, batch, gates.states)
            p = [gates.exit_probability(layer, states) for layer, states in enumerate(supervision.states)]
            probabilities.append(torch.stack(p).cpu().numpy())
            kept.append((supervision.agreement == 1).cpu().numpy())
            costs.append(exit_costs(answerer.model, trace, gates)[:, list(supervision.samples)])
            progress.update(len(batch))
    return Outcomes(*(np.concatenate(part, axis=1) for part in (probabilities, kept, costs)))


@torch.inference_mode()
def supervise_own_answers(
    answerer: Answerer, batch: Batch, states: Sequence[str] = PAPER_STATES
) -> tuple[Supervision, ExitTrace]:
    """Answer a batch without exit, then label every layer with these answers as given.

    Args:
        answerer: a model to which ``NoExit`` is attached, answering greedily.
        states: what gates look at.

    Returns:
        The supervision, and the trace of the prefill without exit.
    """
    chat, handle = answerer.chat, answerer.handle
    assert handle is not None
    batch = chat.place(batch)
    with handle.collect() as traces:
        answers = chat.generate(batch, answerer.generation)
    embedded = chat.embed(batch, answers, _until_end(answers, chat.end_token_ids))
    return supervise(chat.model, **vars(embedded), states=states), traces[0]


def exit_costs(model: nn.Module, trace: ExitTrace, gates: ExitGates) -> NDArray:
    """(L + 1, B) TFLOPs of a prefill with exit after each layer, gates included; the last row is without exit.

    Args:
        trace: of the same prompts without exit.
    """
    flops = prefill_flops(model, trace)
    decoder = decoder_flops_by_exit(layer_costs(model), trace.prompt_tokens, trace.visual_tokens)
    ran = [gates.flops_to(min(layer, trace.num_layers - 1)) for layer in range(trace.num_layers + 1)]
    vision = np.array(flops.vision) + np.array(flops.projector)
    return (decoder + np.array(ran)[:, None] + vision) / TERA


def _until_end(answers: torch.Tensor, ends: Sequence[int]) -> torch.Tensor:
    """(B, T) bool: the tokens of each answer up to its end token, which counts."""
    is_end = torch.isin(answers, torch.tensor(ends, device=answers.device))
    return is_end.cumsum(1) - is_end.long() == 0


def calibrate(args: argparse.Namespace) -> Calibration:
    """Choose the threshold that the arguments ask for and write it beside the gates."""
    if sum(value is not None for value in (args.max_changed, args.budget, args.budget_ms)) != 1:
        raise ValueError(
            "give one of --max-changed (a share of answers), --budget (a share of the TFLOPs) and --budget-ms "
            "(milliseconds per prefill)"
        )
    if args.output is None and args.gates and (name := hub_name(args.gates)):
        raise ValueError(
            f"{name} is on the hub, where nothing is changed in place: name a folder with --output"
        )
    items = read_items(args.data_path)[: args.limit]
    check_items(items, args.image_folder)
    answerer = open_answerer(args, args.conv_mode)
    policy = answerer.handle.policy if answerer.handle is not None else None
    if answerer.handle is None or not isinstance(policy, LearnedExit):
        raise ValueError(f"no gates to calibrate: {args.model_path} holds none, pass --gates FOLDER")
    gates = policy.gates
    answerer.handle.policy = NoExit()
    outcomes = observe(answerer, gates, items, args.image_folder, args.batch_size)
    if args.budget_ms is not None:
        outcomes, full = in_milliseconds(outcomes, answerer, gates, items, args)
        where = f"({answerer.chat.device.type}, batches of {args.batch_size})"
        threshold = threshold_for_cost(outcomes, args.budget_ms)
        unit, target = "ms", f"mean prefill of at most {args.budget_ms:g} ms {where}"
    else:
        full, unit = float(outcomes.costs[-1].mean()) - gates.flops_to(gates.num_layers - 1) / TERA, "TFLOPs"
        if args.max_changed is not None:
            threshold = threshold_for_change(outcomes, args.max_changed, args.confidence)
            target = f"at most {args.max_changed:.2%} of answers change, confidence {args.confidence:.0%}"
        else:
            threshold = threshold_for_cost(outcomes, args.budget * full)
            target = f"mean prefill cost at most {args.budget:.0%} of that without exit"
    samples = outcomes.kept.shape[1]
    changed, cost = outcomes.changed(threshold) / samples, outcomes.cost(threshold)
    result = Calibration(threshold, changed, cost, full, unit, samples, target)
    gates.calibration = asdict(result)
    gates.save_pretrained(args.output or args.gates or args.model_path)
    return result


def in_milliseconds(
    outcomes: Outcomes, answerer: Answerer, gates: ExitGates, items: Sequence[Item], args
) -> tuple[Outcomes, float]:
    """The same outcomes with measured times as costs, and the time without exit or gates, both per sample.

    The first batch is measured; every sample is taken to cost the same.
    """
    size = args.batch_size
    _, batch = next(prepared_batches(items[:size], size, answerer.chat, args.image_folder))
    seconds = exit_times.measure(answerer.chat, gates, batch)
    times = exit_times.by_exit_layer(seconds, gates.num_layers, len(batch))
    costs = np.repeat(times[:, None], outcomes.kept.shape[1], axis=1)
    return replace(outcomes, costs=costs), 1000 * seconds[exit_times.NEVER] / len(batch)


def build_parser() -> argparse.ArgumentParser:
    """The flags of a run, beside those of the exit method."""
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.engine.calibrate",
        description="Choose the gates' threshold on a calibration set.",
    )
    parser.add_argument("--model-path", type=os.path.expanduser, required=True)
    parser.add_argument("--model-base", type=os.path.expanduser)
    parser.add_argument(
        "--data-path", required=True, help="instruction data that the gates were not trained on"
    )
    parser.add_argument("--image-folder", type=os.path.expanduser, required=True)
    add_template_arguments(parser, "vicuna_v1")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--limit", type=int, help="use the first so many questions")
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--max-changed", type=float, help="largest share of answers that may change")
    parser.add_argument("--confidence", type=float, default=CONFIDENCE, help="of that promise")
    parser.add_argument("--budget", type=float, help="mean TFLOPs, as a share of those without exit")
    parser.add_argument("--budget-ms", type=float, help="mean milliseconds of a prefill, measured now")
    parser.add_argument("--output", type=Path, help="folder for the calibrated gates (default: in place)")
    add_method_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    def action(args: argparse.Namespace) -> None:
        result = calibrate(args)
        share = result.cost / result.full_cost
        print(
            f"threshold {result.threshold:.3f}: {result.target}. On the {result.samples} calibration answers "
            f"{result.changed:.2%} change, and a prefill costs {share:.1%} of one without exit."
        )

    run(build_parser(), action, argv)


if __name__ == "__main__":
    main()
