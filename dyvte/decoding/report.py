"""What one prefill did for one sample, as a typed record: the ``metadata`` of answers files.

Called from :mod:`dyvte.decoding`, :mod:`dyvte.engine` and :mod:`dyvte.report`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What an answer depends on besides the question, noted when it is generated.

    Attributes:
        dtype: of the model's weights and states, such as ``float16``.
        attention: the attention kernel that ran.
        device: name of the GPU, or ``cpu``.
        graphs: whether CUDA graphs were in use.
        model_sha256, gates_sha256: digests of the weights; None where they were not computed or there are none.
        gates_name: ``org/name@commit`` of gates of the hub.
        commit, dirty: the code's git commit, and whether it was modified; None outside of a repository.
        versions: of Python and the packages that results depend on.
        family: the model's ``model_type``.
        template: the prompt template's name, or that it is the model's own.
        processor: settings of the image processor: sizes, tiles.
    """

    dtype: str
    attention: str
    device: str
    graphs: bool = False
    model_sha256: str | None = None
    gates_sha256: str | None = None
    gates_name: str | None = None
    commit: str | None = None
    dirty: bool | None = None
    versions: Mapping[str, str] | None = None
    family: str | None = None
    template: str | None = None
    processor: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class PrefillReport:
    """One sample's prefill.

    Attributes:
        exit_layer: zero-based; None where the image stayed to the end.
        tokens_per_layer: (layers,) tokens that each layer computed, and so the KV entries it holds after prefill.
        exit_probabilities: of the gates, by layer up to the last one that ran; None where none ran.
        tflops: vision tower, projector, decoder and gates, in 10^12 FLOPs.
        decoder_tflops: decoder layers and gates.
        full_decoder_tflops: decoder layers without exit or gates, for the same prompt.
        kv_bytes: keys and values held after prefill.
        prompt_tokens, visual_tokens: before any exit.
        seconds: wall time of the sample's whole generation (its batch's, divided by the batch size), or None.
        batch1_text: the answer to the same question asked alone, where that was checked.
        run: what the answer depends on besides the question.
        version: of this schema.

    Fields without which older answers files were written are None.
    """

    exit_layer: int | None
    tokens_per_layer: tuple[int, ...]
    tflops: float
    decoder_tflops: float
    prompt_tokens: int
    visual_tokens: int
    exit_probabilities: tuple[float | None, ...] = ()
    full_decoder_tflops: float | None = None
    kv_bytes: int | None = None
    seconds: float | None = None
    batch1_text: str | None = None
    run: RunInfo | None = None
    version: int = VERSION

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.tokens_per_layer)

    @property
    def saved_tflops(self) -> float:
        """Decoder TFLOPs that an exit has saved; negative where gates cost more than was saved."""
        return 0.0 if self.full_decoder_tflops is None else self.full_decoder_tflops - self.decoder_tflops

    def as_dict(self) -> dict[str, Any]:
        """For JSON; :meth:`from_dict` reads it. Probabilities keep four decimals."""
        content = asdict(self)
        content["exit_probabilities"] = [None if p is None else round(p, 4) for p in self.exit_probabilities]
        return {name: value for name, value in content.items() if value is not None or name == "exit_layer"}

    @classmethod
    def from_dict(cls, content: Any, place: str = "metadata") -> PrefillReport:
        """Read what :meth:`as_dict` gave, or the ``metadata`` of answers files written before it had a version.

        Raises:
            ValueError: it holds no measurements, or is of a later version; ``place`` says where.
        """
        if not isinstance(content, Mapping) or "tokens_per_layer" not in content or "tflops" not in content:
            raise ValueError(
                f"{place} holds no measurements; answer the questions with this project's commands"
            )
        if content.get("version", 1) != VERSION:
            raise ValueError(f"{place} is of version {content['version']}, this code reads version {VERSION}")
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {name: value for name, value in content.items() if name in known}
        values["tokens_per_layer"] = tuple(values["tokens_per_layer"])
        values["exit_probabilities"] = tuple(values.get("exit_probabilities", ()))
        if values.get("run") is not None:
            values["run"] = RunInfo(**values["run"])
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"{place} lacks a measurement ({error}); answer the questions again") from None
