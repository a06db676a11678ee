"""The gates: one small MLP per decoder layer that predicts whether the model still needs the image (paper, Eq. 2).

Called from most of the project.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dyvte.gates.origin import Origin, short_name
from dyvte.gates.states import PAPER_STATES, check_states
from dyvte.provenance import checkpoint_digest

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo
    from transformers import PretrainedConfig

    from dyvte.report.record import ResultRecord

KINDS = ("full", "low_rank", "shared")


class ExitGate(nn.Module):
    """``W2 . GELU(W1 . states)`` without biases; row 0 of the logits is keep, row 1 is exit.

    With a rank, the first matrix is the product ``W1 . V`` of that rank. The names ``w1`` and ``w2`` are the paper's
    keys.
    """

    def __init__(self, input_size: int, width: int, rank: int | None = None):
        super().__init__()
        self.v = nn.Identity() if rank is None else nn.Linear(input_size, rank, bias=False)
        self.w1 = nn.Linear(rank or input_size, width, bias=False)
        self.w2 = nn.Linear(width, 2, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """States (n, K * D) -> logits (n, 2)."""
        return self.w2(nn.functional.gelu(self.w1(self.v(states))))


class SharedGate(nn.Module):
    """``W2 . GELU(W1 . normalized states + e_l)``: one gate for all layers, told which layer it is at.

    Each state vector is divided by its root mean square, because the size of states grows with depth.
    """

    def __init__(self, input_size: int, width: int, hidden_size: int):
        super().__init__()
        self.hidden_size = hidden_size
        self.w1 = nn.Linear(input_size, width, bias=False)
        self.w2 = nn.Linear(width, 2, bias=False)

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """States (n, K * D), the layer's embedding (width,) -> logits (n, 2)."""
        parts = states.unflatten(-1, (-1, self.hidden_size))
        parts = nn.functional.rms_norm(parts.float(), (self.hidden_size,), eps=1e-6)
        return self.w2(nn.functional.gelu(self.w1(parts.flatten(1).to(states.dtype)) + embedding))


class ExitGates(nn.Module):
    """One gate per decoder layer, and the names of the states that they read.

    Args:
        num_layers: decoder layers.
        hidden_size: the decoder's hidden size.
        width: hidden units of each gate (paper: 2048).
        states: which states, in this order; see :data:`dyvte.gates.states.STATES`.
        kind: one of :data:`KINDS`: ``full`` is the paper's, ``low_rank`` and ``shared`` are smaller.
        rank: of the first matrix of ``low_rank`` gates.
        gated_layers: the layers that have a gate; all by default, as in the paper. No sample exits at other layers.
        gain: scale of fresh weights. Where states are large, gates with the paper's gain of 1 start saturated and
            stay overconfident unless they train for long.

    Attributes:
        layers: one module per decoder layer; those without a gate have no weights.
        calibration: how a threshold was chosen for these gates (see :mod:`dyvte.gates.calibration`); empty when
            none was. Saved with the gates.
        origin: the model they belong to and the data they were trained on, where known. Saved with the gates.

    Raises:
        ValueError: when a size is not positive, the states or the kind are not known ones, ``rank`` does not fit the
            kind, or gated layers are none, or not the model's.
    """

    def __init__(
        self,
        num_layers: int,
        hidden_size: int,
        width: int = 2048,
        states: Sequence[str] = PAPER_STATES,
        *,
        kind: str = "full",
        rank: int | None = None,
        gated_layers: Sequence[int] | None = None,
        gain: float = 1.0,
    ):
        super().__init__()
        if min(num_layers, hidden_size, width) < 1:
            raise ValueError(f"sizes must be positive, got {num_layers}, {hidden_size} and {width}")
        if kind not in KINDS:
            raise ValueError(f"the kind of gates must be one of {', '.join(KINDS)}, got {kind!r}")
        if (rank is not None and rank > 0) != (kind == "low_rank"):
            raise ValueError(f"low_rank gates, and no others, need a positive rank; got {kind} with {rank}")
        self.num_layers, self.hidden_size, self.width = num_layers, hidden_size, width
        self.states = check_states(states)
        self.kind, self.rank = kind, rank
        self.gated_layers = tuple(range(num_layers) if gated_layers is None else sorted(set(gated_layers)))
        if not self.gated_layers or not set(self.gated_layers) <= set(range(num_layers)):
            raise ValueError(f"gated layers must be some of 0..{num_layers - 1}, got {self.gated_layers}")
        self.calibration: dict[str, Any] = {}
        self.origin = Origin()
        size = len(self.states) * hidden_size
        self.shared = SharedGate(size, width, hidden_size) if kind == "shared" else None
        self.layers = nn.ModuleList(
            nn.Identity()
            if layer not in self.gated_layers
            else ExitGate(size, width, rank)
            if self.shared is None
            else nn.ParameterDict({"embedding": torch.zeros(width)})
            for layer in range(num_layers)
        )
        self.reset_parameters(gain)

    def reset_parameters(self, gain: float = 1.0) -> None:
        """Xavier-uniform matrices times ``gain``, with 1 as the paper's code initialises them; embeddings zero."""
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter, gain)
            else:
                nn.init.zeros_(parameter)

    def has_gate(self, layer: int) -> bool:
        """Whether a layer has a gate."""
        return layer in self.gated_layers

    def forward(self, layer: int, states: Tensor) -> Tensor:
        """Logits (n, 2) of one layer's gate for states (n, K * D) of any float dtype.

        Raises:
            ValueError: when the layer has no gate.
        """
        if not self.has_gate(layer):
            raise ValueError(f"layer {layer} has no gate: these gates are at the layers {self.gated_layers}")
        gate: Any = self.layers[layer]
        if self.shared is None:
            return gate(states.to(gate.w2.weight.dtype))
        weight = self.shared.w2.weight
        return self.shared(states.to(weight), gate.embedding.to(weight.device))

    def exit_probability(self, layer: int, states: Tensor) -> Tensor:
        """Exit probability (n,) in float32 of one layer's gate; NaN, which never exits, where it has none."""
        if not self.has_gate(layer):
            return torch.full((len(states),), torch.nan, device=states.device)
        return self(layer, states).float().softmax(-1)[:, 1]

    @property
    def threshold(self) -> float:
        """The calibrated threshold; 0.5, the paper's, where there is none."""
        return self.calibration.get("threshold", 0.5)

    @cached_property
    def flops(self) -> int:
        """FLOPs (2 x multiply-accumulate) of one gate for one sample."""
        gate = self.layers[self.gated_layers[0]] if self.shared is None else self.shared
        return 2 * sum(matrix.numel() for matrix in gate.parameters())

    def flops_to(self, layer: int) -> int:
        """FLOPs of all gates up to a layer, inclusive, for one sample."""
        return self.flops * sum(gated <= layer for gated in self.gated_layers)

    def place(self, devices: Sequence[torch.device]) -> None:
        """Put each layer's gate on that layer's device; a shared gate on the first layer's."""
        if self.shared is not None:
            self.to(devices[0])
            return
        for gate, device in zip(self.layers, devices, strict=True):
            gate.to(device)

    def check(self, num_layers: int, hidden_size: int) -> None:
        """Raise ValueError, naming both values, when the gates do not fit a decoder of this depth and width."""
        if (self.num_layers, self.hidden_size) != (num_layers, hidden_size):
            own = f"{self.num_layers} layers, hidden size {self.hidden_size}"
            raise ValueError(
                f"these gates are for a model of {own}; this one has {num_layers} and {hidden_size}"
            )

    def check_base(self, sha256: str | None, name: str | None) -> None:
        """Raise ValueError, naming both models, when the gates are known to belong to another model.

        Args:
            sha256: digest of the model's weights; None skips the check.
            name: of the model, for the message.
        """
        own = self.origin.base_sha256
        if sha256 is not None and own is not None and sha256 != own:
            raise ValueError(
                f"these gates were trained for {self.origin.base_model or 'another model'} (weights {own[:12]}), not "
                f"for {name or 'this model'} (weights {sha256[:12]}): train gates for it"
            )

    def check_model(self, config: PretrainedConfig) -> None:
        """As :meth:`check_base`, for a loaded model: by its family, and by its weights where they can be found.

        LLaVA's own checkpoints may be made of several folders: their loader, which knows these, checks the weights.
        """
        name, family = config.name_or_path or "", config.model_type
        if self.origin.model_family not in (None, family):
            raise ValueError(
                f"these gates were trained for {self.origin.base_model or 'a model'} of the family "
                f"{self.origin.model_family}, not for {short_name(name) or 'this model'} of the family {family}"
            )
        if self.origin.base_sha256 is not None and name and not hasattr(config, "mm_vision_tower"):
            with suppress(FileNotFoundError):  # the folder may be gone since
                self.check_base(checkpoint_digest(name), short_name(name))

    def save_pretrained(
        self, folder: str | Path, *, records: Sequence[ResultRecord] = (), name: str | None = None
    ) -> None:
        """Write ``gates.safetensors``, ``gates.json`` and a model card, ``README.md``.

        Of a card that is there, the part between its two comments is written anew, and the rest stays.

        Args:
            records: evaluations whose scores the card tells.
            name: of the gates on the hub, for the card; by default the folder's.

        Raises:
            ValueError: a record is of other gates.
        """
        from dyvte.gates.card import write_card
        from dyvte.gates.files import save_gates

        save_gates(self, folder)
        write_card(self, Path(folder), records, name)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        base_model: str | None = None,
        records: Sequence[ResultRecord] = (),
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload gates",
        commit_description: str | None = None,
        create_pr: bool = False,
    ) -> CommitInfo:
        """Write what :meth:`save_pretrained` writes to a repository of the Hugging Face hub, in one commit.

        The repository, and a branch ``revision``, are made where they are missing. Of a card that is there, what a
        person wrote stays.

        Args:
            base_model: the model's name on the hub, where the gates were trained on a folder; noted in ``origin``.
            records: evaluations whose scores the card tells (:func:`dyvte.report.record.read_records`).
            private, token, revision, commit_message, commit_description, create_pr: as ``huggingface_hub`` has them.

        Raises:
            OSError: the hub cannot be reached, or refuses.
            ValueError: a record is of other gates.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import EntryNotFoundError

        from dyvte.gates.card import CARD
        from dyvte.gates.hub import FILES, hub_errors

        if base_model is not None:
            self.origin = replace(self.origin, base_model=base_model)
        api = HfApi(token=token)
        with TemporaryDirectory() as folder:
            with hub_errors(repo_id, revision):
                repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
                if revision and not revision.startswith("refs/"):
                    api.create_branch(repo_id, branch=revision, exist_ok=True)
                with suppress(EntryNotFoundError):  # what a person wrote there stays
                    api.hf_hub_download(repo_id, CARD, revision=revision, local_dir=folder)
            self.save_pretrained(folder, records=records, name=repo_id)
            with hub_errors(repo_id, revision):
                return api.upload_folder(
                    repo_id=repo_id,
                    folder_path=folder,
                    revision=revision,
                    commit_message=commit_message,
                    commit_description=commit_description,
                    create_pr=create_pr,
                    allow_patterns=[*FILES, CARD],
                )

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        dtype: torch.dtype | None = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> ExitGates:
        """Read gates from our own files, or from a checkpoint that holds ``visual_gates_router.*`` keys.

        Args:
            folder: or ``org/name``, ``org/name@revision`` on the hub, where there are only our own files.
            dtype: float type to convert to; by default that of the file.
            revision, token, cache_dir, local_files_only, force_download: see :func:`dyvte.gates.hub.gates_folder`.

        Raises:
            FileNotFoundError: when the folder holds no gates, or the hub has none of this name.
            OSError: when the hub refuses.
            ValueError: when the file does not fit its description, or holds values that are not finite.
        """
        from dyvte.gates.files import load_gates
        from dyvte.gates.hub import gates_folder

        place = gates_folder(
            folder,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        return load_gates(place, dtype)
