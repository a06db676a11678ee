"""The model card of gates: ``README.md`` beside them, as the hub shows it.

Called by :mod:`dyvte.gates`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dyvte.gates.files import gates_digest
from dyvte.io import write_whole
from dyvte.weights import writing

if TYPE_CHECKING:
    from dyvte.gates.gate import ExitGates
    from dyvte.report.record import ResultRecord

logger = logging.getLogger(__name__)

CARD = "README.md"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
"""A repository's name on the hub."""
BEGIN = "<!-- dyvte: this part is written anew whenever the gates are saved; other text stays -->"
END = "<!-- dyvte: end -->"
TAGS = ["dyvte", "early-exit", "visual-token-pruning", "arxiv:2411.19628"]
_OURS = "gates_sha256"
"""In the ``metric_args`` of scores that were written here."""


def write_card(
    gates: ExitGates, folder: Path, records: Sequence[ResultRecord] = (), name: str | None = None
) -> None:
    """Write the card of gates that were saved to ``folder``, or renew the part of it that is written here.

    A README without that part is a person's, and one beside a ``config.json`` is a model's: both stay as they are,
    and so do other text and other metadata of a card.

    Args:
        records: evaluations with these gates; those without exit may stand beside them.
        name: of the gates on the hub; by default the folder's.

    Raises:
        ValueError: a record is of other gates.
    """
    path, digest = folder / CARD, gates_digest(folder)
    scores = [_score(record, digest) for record in records]
    if path.is_file():
        try:
            card = ModelCard.load(path)
        except Exception as error:  # of the library's parsers
            logger.warning("%s stays as it is: it cannot be read (%s)", path, " ".join(str(error).split()))
            return
    elif (folder / "config.json").is_file():
        return
    else:
        card = ModelCard("---\n\n---\n")
    before, begin, rest = card.text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        if card.text.strip():
            logger.warning("%s stays as it is: it is not, or no longer, a card of gates", path)
            return
        before, after = "", "\n"
    name = name or folder.name
    card.text = f"{before}{BEGIN}\n{_text(gates, records, name)}{END}{after}"
    _describe(cast(ModelCardData, card.data), gates, scores, name.rpartition("/")[2])
    with writing(path):
        write_whole(path, str(card))


def _describe(data: ModelCardData, gates: ExitGates, scores: list[EvalResult], name: str) -> None:
    """Set the card's metadata."""
    base = gates.origin.base_model
    if base and REPOSITORY.fullmatch(base):  # the hub takes names of its own alone
        data.base_model, data["base_model_relation"] = base, "adapter"
    data.library_name, data.pipeline_tag = "dyvte", "image-text-to-text"
    tags = data.tags or []
    data.tags = [*tags, *(tag for tag in TAGS if tag not in tags)]
    known = {"calibration": gates.calibration.get("target"), "base_sha256": gates.origin.base_sha256}
    known = {key: value for key, value in known.items() if value}
    data["exit_gates"] = {"states": list(gates.states), "threshold": gates.threshold, **known}
    others = [result for result in data.eval_results or [] if _OURS not in (result.metric_args or {})]
    data.eval_results = [*others, *scores] or None
    data.model_name = (data.model_name or name) if data.eval_results else None


def _score(record: ResultRecord, digest: str) -> EvalResult:
    """A record as the hub's metadata has it; ValueError unless it is of the gates with this digest."""
    found = {by.run.gates_sha256 for by in record.answered}
    if "dyvte" in record.method.split("+") and found != {digest}:
        named = ", ".join(sorted(str(one)[:12] for one in found)) or "unknown ones"
        raise ValueError(
            f"the record of {record.benchmark} with {record.model} is of other gates ({named}) than these "
            f"({digest[:12]}): answer the questions with these"
        )
    provenance = {
        _OURS: digest,
        "model_sha256": sorted({by.run.model_sha256 or "unknown" for by in record.answered}),
        "method": record.method,
        "settings": _settings(record),
        "questions": record.num_samples,
        "commit": record.commit,
        "created": record.scoring.created,
        "data_sha256": record.data_sha256,
    }
    return EvalResult(
        task_type="image-text-to-text",
        dataset_type=record.benchmark,
        dataset_name=" ".join(filter(None, (record.benchmark, record.variant))),
        metric_type=record.metric,
        metric_value=record.score,
        metric_args=provenance,
    )


def _text(gates: ExitGates, records: Sequence[ResultRecord], name: str) -> str:
    """The part of the card that is written here."""
    origin = gates.origin
    base = origin.base_model or "a model that is not named"
    sizes = f"{gates.kind}, {gates.width} wide" + (f", rank {gates.rank}" if gates.rank else "")
    layers = f"{len(gates.gated_layers)} of {gates.num_layers} layers"
    data = origin.trained_on
    facts = {
        "Base model": base,
        "Its weights, SHA-256": origin.base_sha256,
        "Its family": origin.model_family,
        "Its decoder": f"{gates.num_layers} layers, hidden size {gates.hidden_size}",
        "Gates": f"{sizes}, after {layers}",
        "States they read": ", ".join(gates.states),
        "Trained on": f"{data.samples} samples, SHA-256 {data.sha256}" if data else None,
        "Threshold": f"{gates.threshold:g} ({_calibration(gates.calibration)})",
    }
    known = [["", ""], *([name, str(value)] for name, value in facts.items() if value)]
    shown = base if origin.base_model else "MODEL"
    parts = [
        f"\n# Exit gates for {_cell(base)}\n",
        "[DyVTE](https://arxiv.org/abs/2411.19628) asks a small gate after each decoder layer whether the model "
        "still needs\nits image; at the first layer whose gate says no, all visual tokens leave. The gates are here, "
        "the model is not.\n",
        _table(known),
        "## Use\n",
        "```python\nfrom dyvte import ExitGates, LearnedExit, attach\n\n"
        f'handle = attach(model, LearnedExit(ExitGates.from_pretrained("{name}")))\n```\n\n'
        f"On every command line of the project: `--model-path {shown} --gates {name}`.\n",
    ]
    if records:
        rows = [_row(record) for record in records]
        parts += ["## Scores\n", _table([[*rows[0]], *([*row.values()] for row in rows)])]
    return "\n".join(parts)


def _settings(record: ResultRecord) -> dict[str, str]:
    """Without those that may hold paths of a machine."""
    return {key: value for key, value in record.settings.items() if key not in ("gates", "arguments")}


def _row(record: ResultRecord) -> dict[str, str]:
    """A record's cells in the table of scores, by their heading."""
    runs = dict.fromkeys(f"{by.run.dtype}, {by.run.attention}, {by.run.device}" for by in record.answered)
    commit = f"commit {record.commit[:12]}" if record.commit else "code of an unknown commit"
    return {
        "Benchmark": " ".join(filter(None, (record.benchmark, record.variant))),
        "Metric": record.metric,
        "Score": f"{record.score:.2f}",
        "Method": " ".join([record.method, *(f"{key}={value}" for key, value in _settings(record).items())]),
        "Questions": str(record.num_samples),
        "Mean exit layer": f"{record.mean_exit_layer:.2f} of {record.num_layers}",
        "Decoder TFLOPs": f"{record.decoder_tflops:.3g}",
        "Answered with": "; ".join([*runs, commit]),
    }


def _calibration(calibration: dict[str, Any]) -> str:
    """How the threshold was chosen (:class:`dyvte.gates.calibration.Calibration`), in words."""
    if not calibration:
        return "the paper's; not calibrated"
    told = [
        f"{name} {f'{value:.4g}' if isinstance(value, float) else value}"
        for name, value in calibration.items()
        if name not in ("target", "threshold")
    ]
    return f"calibrated: {calibration.get('target', 'the target is unknown')}; {', '.join(told)}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body]) + "\n"


def _cell(text: str) -> str:
    """Text that breaks neither a table nor the part's end."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
