"""FLOPs and KV-cache elements of one decoder layer, per token and per pair of tokens, from its config or its modules.

All other files of this package, and so all decoder FLOPs of the project, are computed from :class:`LayerCost`.

Called from :mod:`dyvte.bench`, :mod:`dyvte.cost`, :mod:`dyvte.decoding`, :mod:`dyvte.engine` and :mod:`llava.serve`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from dyvte.families.base import stack_of

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
ACTIVE = ("num_experts_per_tok", "top_k_experts", "moe_topk")
"""Config fields, by family, with the number of experts and of the experts that a token is routed to."""


@dataclass(frozen=True)
class LayerCost:
    """FLOPs (2 x multiply-accumulate) of the matrix products of one layer.

    Attributes:
        per_token: of the projections and the MLP (of experts, those that a token is routed to).
        per_pair: of QK^T and the weighted sum of values, for each pair of a query and a key of a sequence. Attention
            is counted in full, not halved for causality.
        cached: KV-cache elements per token.
    """

    per_token: int
    per_pair: int
    cached: int

    def flops(self, tokens: int) -> int:
        """FLOPs for a sequence of ``tokens`` tokens."""
        return self.per_token * tokens + self.per_pair * tokens**2

    @classmethod
    def of_config(cls, config: Any) -> LayerCost:
        """Of a dense Llama-like layer: grouped-query attention (GQA) and a gated MLP.

        Raises:
            ValueError: layers of this config are mixtures of experts or have multi-head latent attention (MLA).
        """
        if any(getattr(config, name, None) for name in (*EXPERTS, "kv_lora_rank")):
            raise ValueError(
                f"the cost of a layer of {config.model_type!r} cannot be told from its config alone"
            )
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        attention = 2 * config.hidden_size * width * (heads + kv_heads)
        weights = attention + 3 * config.hidden_size * config.intermediate_size
        return cls(2 * weights, 4 * heads * width, 2 * kv_heads * width)

    @classmethod
    def of_layer(cls, layer: Any, config: Any, all_experts: bool = False) -> LayerCost:
        """Of a layer with its modules: each matrix multiplies each token once, experts those that are routed to them.

        Attention must be ``layer.self_attn`` with ``head_dim``, or ``qk_head_dim`` and ``v_head_dim`` (MLA). A weight
        of three dimensions is taken for stacked experts.

        Args:
            all_experts: whether the family computes all experts for every token.
        """
        experts = 0 if all_experts else _first(config, EXPERTS)
        weights = 0.0
        for name, parameter in layer.named_parameters():
            stacked, expert = parameter.ndim == 3, re.search(r"\bexperts\.\d+\.", name)
            if parameter.ndim == 2 or stacked:
                share = _first(config, ACTIVE) / experts if experts and (stacked or expert) else 1.0
                weights += parameter.numel() * share
        attention = layer.self_attn
        # layers may differ in their number of heads (Step 3.7)
        heads = getattr(attention, "num_heads", None) or config.num_attention_heads
        width = getattr(attention, "qk_head_dim", None) or attention.head_dim
        value_width = getattr(attention, "v_head_dim", None) or attention.head_dim
        kv_heads = heads // getattr(attention, "num_key_value_groups", 1)
        pair = width + value_width
        return cls(2 * round(weights), 2 * heads * pair, kv_heads * pair)


def layer_costs(model: Any) -> list[LayerCost]:
    """The cost of each layer of a model's decoder."""
    stack = stack_of(model)
    return [LayerCost.of_layer(layer, stack.config, stack.computes_all_experts) for layer in stack.layers]


def each_layer(costs: Any) -> list[LayerCost]:
    """Costs of the layers as they are; of the config of a dense decoder, those of all its layers."""
    return costs if isinstance(costs, list) else [LayerCost.of_config(costs)] * costs.num_hidden_layers


def _first(config: Any, names: tuple[str, ...]) -> int:
    """The first of these config fields that is set; 0 where none is."""
    return next((value for name in names if (value := getattr(config, name, None))), 0)
