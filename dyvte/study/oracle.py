"""How early could the image leave? The oracle exit of every question, from one forking pass.

python -m dyvte.study.oracle NAME --data-dir DIR --model-path PATH --output DIR [--limit N]
    [--batch-size B] [--conv-mode C] ... (see --help)

The model answers greedily without exit; then one pass with these answers as given labels every layer (``supervise``).
The *oracle exit* of a question is the first layer from which all labels are 1. Leaving there changes no argmax at any
position of the answer, so the answer is the one without exit, and the oracle's score is the baseline's; no generation
is needed for it. A question without such a layer, or without an image, has no oracle exit and counts as the number of
layers in means. ``OUTPUT/oracle.npz`` and ``oracle.json`` get the numbers.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dyvte.cli import run
from dyvte.engine.answer import Answerer
from dyvte.engine.calibrate import supervise_own_answers
from dyvte.engine.model import Batch
from dyvte.study.files import read_study
from dyvte.study.run import build_parser, run_study

STUDY = "oracle"


@dataclass(frozen=True, eq=False)
class OracleStudy:
    """A finished study.

    Attributes:
        manifest: what the JSON file holds.
        question_id: (S,) text.
        labels: (S, L) bool, whether the image may leave after each layer.
        kept: (S, L) bool, whether leaving there keeps every argmax of the answer.
        has_exit: (S,) bool, False for questions that cannot have one.
    """

    manifest: dict[str, Any]
    question_id: NDArray
    labels: NDArray
    kept: NDArray
    has_exit: NDArray

    @classmethod
    def read(cls, path: str | Path) -> OracleStudy:
        """Read a finished study; raises what ``read_study`` raises."""
        manifest, arrays = read_study(path, STUDY)
        return cls(manifest, **arrays)

    @property
    def exit_layers(self) -> NDArray:
        """(S,) oracle exits; the number of layers where there is none."""
        return oracle_exits(self.labels & self.has_exit[:, None])

    @property
    def earliest_exits(self) -> NDArray:
        """(S,) the first layer at which an exit keeps the answer; the number of layers where none does."""
        keeps = self.kept & self.has_exit[:, None]
        return np.where(keeps.any(1), keeps.argmax(1), keeps.shape[1])

    @property
    def unchanged(self) -> NDArray:
        """(L,) percent of the questions whose answer an exit at each layer keeps, with the answer as given.

        A question that cannot have an exit keeps its answer.
        """
        return 100 * (self.kept | ~self.has_exit[:, None]).mean(0)


def oracle_exits(labels: NDArray) -> NDArray:
    """(S,) the first layer from which all labels are 1; L where the last one is 0.

    Args:
        labels: (S, L) bool.
    """
    from_here = np.logical_and.accumulate(labels[:, ::-1], axis=1)
    return labels.shape[1] - from_here.sum(1)


def label_batch(answerer: Answerer, batch: Batch) -> dict[str, NDArray]:
    """The rows of one batch to store."""
    supervision, trace = supervise_own_answers(answerer, batch)
    samples = list(supervision.samples)
    rows = {"has_exit": np.isin(np.arange(trace.num_samples), samples)}
    for name, layers in (("labels", supervision.labels), ("kept", supervision.agreement)):
        rows[name] = np.zeros((trace.num_samples, trace.num_layers), dtype=bool)
        rows[name][samples] = layers.T.cpu().numpy() == 1
    return rows


def find_oracle_exits(args: argparse.Namespace) -> OracleStudy:
    """Label the questions that are not there yet; raises what ``run_study`` raises."""
    args.method, args.temperature, args.num_beams = "none", 0.0, 1
    manifest = {
        "definitions": __doc__,
        "arrays": {
            "question_id": "(S,)",
            "labels": "(S, L) the image may leave after this layer",
            "kept": "(S, L) leaving there changes no argmax of the answer",
            "has_exit": "(S,) there is an image, and text after it",
        },
    }
    run_study(args, STUDY, lambda answerer: manifest, label_batch)
    return OracleStudy.read(args.output)


def describe(result: OracleStudy) -> str:
    """Number of questions and their mean oracle exit, in a line."""
    layers, exits = result.manifest["num_layers"], result.exit_layers
    return (
        f"{result.manifest['samples']} questions: mean oracle exit {exits.mean():.2f} of {layers} layers, "
        f"{int((exits == layers).sum())} without one"
    )


def main(arguments: list[str] | None = None) -> None:
    about = "Find the earliest layer at which the image of each question could leave."
    parser = build_parser(arguments, about)
    run(parser, lambda args: print(describe(find_oracle_exits(args))), arguments)


if __name__ == "__main__":
    main()
