"""What one decoder layer costs per token and per pair of tokens, from its config or from its modules."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from dyvte.families.base import stack_of

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
ACTIVE = ("num_experts_per_tok", "top_k_experts", "moe_topk")
"""What families call their experts, and those that a token goes to."""


@dataclass(frozen=True)
class LayerCost:
    """FLOPs (2 x multiply-accumulate) of the matrix products of one layer.

    Attributes:
        per_token: of the projections, the MLP, and the experts that a token goes to.
        per_pair: of the scores and their use, for each pair of a query and a key of a sequence. Attention is counted
            in full, not halved for causality.
        cached: numbers that the cache holds for each token, keys and values together.
    """

    per_token: int
    per_pair: int
    cached: int

    def flops(self, tokens: int) -> int:
        """Of a sequence of ``tokens`` tokens."""
        return self.per_token * tokens + self.per_pair * tokens**2

    @classmethod
    def of_config(cls, config: Any) -> LayerCost:
        """Of a dense Llama-like layer: attention with grouped queries, and a gated MLP.

        Raises:
            ValueError: layers of this config are mixtures of experts or have latent attention.
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
        """Of a layer of any family: matrices count once per token, experts for those that a token goes to.

        Args:
            all_experts: whether the family computes all experts for every token.
        """
        experts = 0 if all_experts else _first(config, EXPERTS)
        weights = 0.0
        for name, parameter in layer.named_parameters():
            stacked, listed = parameter.ndim == 3, re.search(r"\bexperts\.\d+\.", name)
            if parameter.ndim == 2 or stacked:
                share = _first(config, ACTIVE) / experts if experts and (stacked or listed) else 1.0
                weights += parameter.numel() * share
        attention = layer.self_attn
        heads = config.num_attention_heads
        width = getattr(attention, "qk_head_dim", None) or attention.head_dim
        value_width = getattr(attention, "v_head_dim", None) or attention.head_dim
        kv_heads = heads // getattr(attention, "num_key_value_groups", 1)
        pair = width + value_width
        return cls(2 * round(weights), 2 * heads * pair, kv_heads * pair)


def layer_costs(model: Any) -> list[LayerCost]:
    """Of each layer of a model's decoder."""
    stack = stack_of(model)
    return [LayerCost.of_layer(layer, stack.config, stack.computes_all_experts) for layer in stack.layers]


def _first(config: Any, names: tuple[str, ...]) -> int:
    return next((value for name in names if (value := getattr(config, name, None))), 0)
