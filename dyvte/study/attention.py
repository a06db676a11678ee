"""Attention of every layer on a benchmark's questions: who attends to whom, and how sharply (Fig. 3, 5, 8 to 16).

python -m dyvte.study.attention NAME --data-dir DIR --model-path PATH --output DIR [--limit N]
    [--method none|dyvte|fixed] [--batch-size B] [--conv-mode C] ... (see --help)

Only prompts are run; nothing is generated. ``OUTPUT/attention.npz`` and ``attention.json`` get the numbers, which
``python -m dyvte.study.plot attention`` and ``entropy`` draw. What is measured: ``attention_stats.py``.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dyvte.cli import run
from dyvte.engine.answer import Answerer
from dyvte.engine.model import Batch
from dyvte.reduction.combine import Combine
from dyvte.study import attention_stats
from dyvte.study.attention_stats import KINDS, MEASURES, AttentionStats, statistics_of
from dyvte.study.files import read_study
from dyvte.study.run import build_parser, method_of, run_study
from dyvte.study.stages import Stages, find_stages

STUDY = "attention"
EXIT_NONE = -1


@dataclass(frozen=True, eq=False)
class AttentionStudy:
    """A finished study as figures see it.

    Attributes:
        manifest: what the JSON file holds.
        mean, variance: (M, K, L) float64, over the samples and heads for which a kind is defined; NaN where there
            are none.
        count: (K, L) how many samples these are.
        exit_layers: (S,) exit layer of each sample, -1 for none.
    """

    manifest: dict[str, Any]
    mean: NDArray
    variance: NDArray
    count: NDArray
    exit_layers: NDArray

    @classmethod
    def read(cls, path: str | Path) -> AttentionStudy:
        """Read a finished study; raises what ``read_study`` raises."""
        manifest, arrays = read_study(path, STUDY)
        mean, variance = over_samples(arrays["mean"], arrays["variance"])
        count = np.isfinite(arrays["mean"][:, 0]).sum(0)
        return cls(manifest, mean, variance, count, arrays["exit_layer"])

    def curve(self, measure: str, kind: str) -> tuple[NDArray, NDArray]:
        """Mean and variance (L,) of one measure of one kind."""
        at = MEASURES.index(measure), KINDS.index(kind)
        return self.mean[at], self.variance[at]

    @property
    def stages(self) -> Stages | None:
        """The three stages; None where the image left some layers to the text alone."""
        return find_stages(self.curve("mass", "image_self")[0], self.curve("mass", "cross")[0])


def over_samples(mean: NDArray, variance: NDArray) -> tuple[NDArray, NDArray]:
    """Mean and variance over samples and heads, from those over the heads of each sample.

    Every sample has the same number of heads, so the variance is the mean of the variances plus the variance of the
    means (law of total variance). NaNs are left out.

    Args:
        mean, variance: (S, ...).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where no sample has a value
        overall, within = (np.nanmean(values.astype(np.float64), 0) for values in (mean, variance))
        return overall, within + np.nanmean((mean - overall) ** 2, 0)


@torch.inference_mode()
def prefill_statistics(answerer: Answerer, batch: Batch) -> dict[str, NDArray]:
    """Run the prompts of a batch under ``AttentionStats`` and return the rows to store."""
    assert answerer.handle is not None
    with answerer.handle.collect() as traces:
        answerer.chat.prefill(batch)
    trace = traces[0]
    statistics = statistics_of(trace)
    exits = [EXIT_NONE if layer is None else layer for layer in trace.exit_layers]
    return {
        "mean": statistics.mean.numpy(),
        "variance": statistics.variance.numpy(),
        "exit_layer": np.array(exits),
        "prompt_tokens": np.array(trace.prompt_tokens),
        "visual_tokens": np.array(trace.visual_tokens),
    }


def measure_attention(args: argparse.Namespace) -> AttentionStudy:
    """Measure the questions that are not there yet; raises what ``run_study`` raises."""

    def prepare(answerer: Answerer) -> dict[str, Any]:
        assert answerer.handle is not None
        policy = answerer.handle.policy
        answerer.handle.policy = Combine((AttentionStats(), policy))
        return {
            "definitions": attention_stats.__doc__,
            "arrays": {
                "question_id": "(S,)",
                "mean, variance": "(S, M, K, L) over the heads of a layer; NaN where a kind is undefined",
                "exit_layer": f"(S,) zero-based, {EXIT_NONE} for none",
                "prompt_tokens, visual_tokens": "(S,)",
            },
            "measures": list(MEASURES),
            "kinds": list(KINDS),
            # None: layers differ
            "heads": getattr(answerer.chat.decoder_config, "num_attention_heads", None),
            **method_of(args, policy),
        }

    run_study(args, STUDY, prepare, prefill_statistics)
    return AttentionStudy.read(args.output)


def describe(study: AttentionStudy) -> str:
    """Number of questions, and the stages, in a few lines."""
    counted = f"{study.manifest['samples']} questions, {int(study.count[1].max())} of them with an image\n"
    stages = study.stages
    if stages is None:
        return f"{counted}no stages: some layers computed without any image"
    second, third = stages.starts
    shown = ", ".join(f"{value:.3f}" for value in stages.cross)
    return (
        f"{counted}stages: layers 0-{second - 1}, {second}-{third - 1}, {third}-{len(study.count[0]) - 1} "
        f"({stages.explained:.0%} of the variance over layers); cross-attention mass {shown}: "
        f"{'falls, then rises, as in the paper' if stages.as_in_paper else 'not as in the paper'}"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = build_parser(arguments, "Measure the attention of every layer on a benchmark's questions.")
    run(parser, lambda args: print(describe(measure_attention(args))), arguments)


if __name__ == "__main__":
    main()
