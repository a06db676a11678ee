"""How the paper's code runs a prefill, as a variant: eager attention that keeps the weights of every layer.

All samples exit after the same layer. The layers are transformers' own; a hook keeps the attention weights that they
return, as a model called with ``output_attentions=True`` holds them until it is done.

Called by :mod:`dyvte.bench.variants`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from dyvte.bench.shapes import Prompts
from dyvte.gates.gate import ExitGates


@dataclass(frozen=True, eq=False)
class PaperWay:
    """A prefill with ``gates`` asked after each layer until they fire.

    All prompts must hold their images at the same places, and the model must run eager attention, whose weights the
    paper's code asks for.
    """

    gates: ExitGates

    def prefill(self, model, prompts: Prompts) -> CausalLMOutputWithPast:
        """Logits (B, 1, vocabulary) of the next token, the cache, and all attention weights."""
        decoder, visual = model.model, prompts.visual_mask[0]
        hidden, cache = prompts.inputs_embeds, DynamicCache(config=decoder.config)
        positions = torch.arange(len(visual), device=hidden.device)[None]
        rope, mask = decoder.rotary_emb(hidden, position_ids=positions), _causal(len(visual), hidden)
        weights: list[Tensor] = []
        hooks = [
            layer.self_attn.register_forward_hook(lambda module, args, output: weights.append(output[1]))
            for layer in decoder.layers
        ]
        try:
            for index, layer in enumerate(decoder.layers):
                hidden = layer(
                    hidden,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    position_embeddings=rope,
                )
                if visual is not None and self._fires(index, hidden, visual):
                    text = ~visual
                    hidden, positions, visual = hidden[:, text], positions[:, text], None
                    rope = decoder.rotary_emb(hidden, position_ids=positions)
                    mask = _causal(hidden.shape[1], hidden)
        finally:
            for hook in hooks:
                hook.remove()
        logits = model.lm_head(decoder.norm(hidden)[:, -1:])
        return CausalLMOutputWithPast(logits=logits, past_key_values=cache, attentions=tuple(weights))

    def _fires(self, index: int, hidden: Tensor, visual: Tensor) -> bool:
        """Whether the gate fires for every prompt, given the text after the images."""
        after = hidden[:, int(visual.nonzero().max()) + 1 :]
        others = after[:, :-1] if after.shape[1] > 1 else after
        states = torch.cat([others.mean(1), after[:, -1]], dim=-1)
        return bool((self.gates.exit_probability(index, states) > 0.5).all())


def _causal(length: int, like: Tensor) -> Tensor:
    """Additive causal mask (1, 1, length, length)."""
    return torch.full(
        (length, length), torch.finfo(like.dtype).min, device=like.device, dtype=like.dtype
    ).triu(1)[None, None]
