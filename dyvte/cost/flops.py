"""FLOPs of a prefill, from its trace.

FLOPs are 2 x multiply-accumulate of the matrix products (norms, softmax and activations are not counted), prefill
only, without the language head: vision tower and projector, then for each decoder layer
``2 * params(layer) * n + 4 * n^2 * d`` with its ``n`` tokens and query width ``d`` (of experts, those a token is
routed to), and the gates that ran. The paper's tables count in this way, so the definition must not change.

:mod:`dyvte.decoding.trace` puts the result into reports. Called from :mod:`dyvte.bench`, :mod:`dyvte.decoding`,
:mod:`dyvte.engine` and :mod:`llava.model`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from dyvte.cost.layers import LayerCost, layer_costs
from dyvte.families.base import adapter_for

if TYPE_CHECKING:
    from dyvte.decoding.trace import ExitTrace


@dataclass(frozen=True)
class FlopsReport:
    """FLOPs; each list has one entry per sample.

    Attributes:
        vision: the tower on all of the sample's images (or tiles).
        projector: the projector on all of the visual tokens.
        decoder: all decoder layers.
        gates: the gates that ran.
    """

    vision: list[int]
    projector: list[int]
    decoder: list[int]
    gates: list[int]

    @property
    def total(self) -> list[int]:
        """The sum of all parts, per sample."""
        return [*map(sum, zip(self.vision, self.projector, self.decoder, self.gates, strict=True))]


def layer_params(config: Any) -> int:
    """Weights in the matrix products of one dense decoder layer (attention with GQA, gated MLP)."""
    return LayerCost.of_config(config).per_token // 2


def layer_flops(config: Any, tokens: int) -> int:
    """FLOPs of one dense decoder layer over ``tokens`` tokens; see :class:`~dyvte.cost.layers.LayerCost`."""
    return LayerCost.of_config(config).flops(tokens)


def vision_flops(config: Any) -> int:
    """FLOPs of a CLIP-like tower on one image: patch embedding and all layers over patches and class token."""
    patches = (config.image_size // config.patch_size) ** 2
    tokens, hidden = patches + 1, config.hidden_size
    layer = 2 * tokens * (4 * hidden**2 + 2 * hidden * config.intermediate_size) + 4 * tokens**2 * hidden
    embedding = 2 * patches * hidden * config.num_channels * config.patch_size**2
    return embedding + config.num_hidden_layers * layer


def _tower_flops(tower: Any) -> tuple[int, int]:
    """FLOPs and visual tokens of one image; towers unlike CLIP have ``flops_per_image`` and ``num_patches``."""
    if hasattr(tower, "flops_per_image"):
        return tower.flops_per_image(), tower.num_patches
    config = tower.config
    return vision_flops(config), (config.image_size // config.patch_size) ** 2


def projector_params(projector: nn.Module | None) -> int:
    """Weights in the matrix products of a projector."""
    modules = projector.modules() if projector is not None else ()
    return sum(module.weight.numel() for module in modules if isinstance(module, nn.Linear))


def prefill_flops(model: nn.Module, trace: ExitTrace) -> FlopsReport:
    """FLOPs of every sample of a prefill.

    Args:
        model: the model that ran, unchanged since; it must have an adapter.
        trace: the prefill's trace.

    With CLIP's formula, the number of images (tiles) of a sample is its visual tokens over the tower's patches,
    rounded up: exact unless tiles were cut after the projector (anyres with unpad). FLOPs counted while the tower ran
    (:mod:`dyvte.cost.vision`) include the projector, and are split among samples by their visual tokens.
    """
    adapter = adapter_for(model)
    tower, projector = adapter.vision(model)
    costs = layer_costs(model)
    seen = sum(trace.visual_tokens)
    if trace.vision_flops is not None:
        vision = [trace.vision_flops * tokens // max(seen, 1) for tokens in trace.visual_tokens]
        projected = [0] * trace.num_samples  # counted with the tower
    else:
        per_image, patches = 0, 1
        if tower is not None and seen:
            per_image, patches = _tower_flops(tower)
        vision = [-(-tokens // patches) * per_image for tokens in trace.visual_tokens]
        projected = [tokens * 2 * projector_params(projector) for tokens in trace.visual_tokens]
    per_sample = trace.tokens_per_layer.T.tolist()
    return FlopsReport(
        vision=vision,
        projector=projected,
        decoder=[sum(cost.flops(n) for cost, n in zip(costs, tokens, strict=True)) for tokens in per_sample],
        gates=trace.gate_flops.sum(0).tolist(),
    )
