"""LLaVA on a Llama decoder: transformers' own layers, with images spliced into the prompt.

Called by :mod:`llava.convert`, :mod:`llava.model.builder` and :mod:`llava.train.prepare`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from dyvte.decoding.attach import is_attached
from dyvte.families.base import Adapter, register_adapter
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel


class LlavaConfig(LlamaConfig):
    """Llama's config plus LLaVA's ``mm_*`` fields."""

    model_type = "llava_llama"


class LlavaLlamaModel(LlavaMetaModel, LlamaModel):
    """Decoder, vision tower and projector under one roof (state-dict prefix ``model.``)."""

    config_class = LlavaConfig


class LlavaLlamaForCausalLM(LlamaForCausalLM, LlavaMetaForCausalLM):
    """LLaVA-1.5's model class, with its state-dict keys."""

    config_class = LlavaConfig
    # a tower that the config keeps elsewhere, and gates, may lie in a checkpoint beside what this class holds
    _keys_to_ignore_on_load_unexpected = [r"model\.vision_tower\.", r"visual_gates_router\."]

    def __init__(self, config: LlavaConfig):
        super(LlamaForCausalLM, self).__init__(config)
        self.model = LlavaLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        tower = self.get_vision_tower()
        if tower is not None and tower.inside:  # it stays on one device when layers are spread over several
            self._no_split_modules = [*(self._no_split_modules or []), type(tower).__name__]
        self.post_init()

    def get_model(self) -> LlavaLlamaModel:
        return self.model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values=None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        images: Tensor | list[Tensor] | None = None,
        image_sizes: list | None = None,
        visual_mask: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,  # named, because generate() looks for it
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits (B, L, vocabulary), and the loss where ``labels`` are given.

        In training with labels the logits are those of the N positions that predict a learned token, (N, vocabulary):
        prompts and images have no loss, and a large vocabulary makes their logits the largest tensor of a step.

        Args:
            input_ids: (B, S) with ``IMAGE_TOKEN_INDEX`` where images belong; or ``inputs_embeds`` (B, L, D) that
                were spliced before, with ``visual_mask`` (B, L) saying where the images are.
            images: see :meth:`LlavaMetaForCausalLM.image_features`.

        Raises:
            ValueError: when images and ``<image>`` tokens do not match in number.
        """
        prefill = input_ids is not None and input_ids.shape[1] > 1
        if inputs_embeds is None and images is not None and prefill:
            spliced = self.splice_images(input_ids, attention_mask, labels, images, image_sizes)
            input_ids, inputs_embeds, visual_mask = None, spliced.inputs_embeds, spliced.visual_mask
            if labels is not None:
                labels = spliced.labels
            if attention_mask is not None:
                attention_mask = spliced.attention_mask
                position_ids = spliced.positions if position_ids is not None else None
        elif prefill and bool((input_ids == IMAGE_TOKEN_INDEX).any()):
            raise ValueError("the prompt holds <image>, but no images were given: pass images=")
        if visual_mask is not None and is_attached(self):
            kwargs["visual_mask"] = visual_mask
        # else it may be among the others as `cache`, its name since transformers 5.24
        if past_key_values is not None:
            kwargs["past_key_values"] = past_key_values
        inputs: dict[str, Any] = {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "attention_mask": attention_mask,
            "inputs_embeds": inputs_embeds,
            "use_cache": use_cache,
            **kwargs,
        }
        if labels is not None and self.training:
            return self._loss_of_answers(labels, **inputs)
        inputs |= {"labels": labels, "logits_to_keep": logits_to_keep}
        return super().forward(**inputs)

    @can_return_tuple
    def _loss_of_answers(self, labels: Tensor, num_items_in_batch=None, **inputs) -> CausalLMOutputWithPast:
        """The same loss as over all logits, with those of learned tokens only."""
        output = self.model(**inputs)
        hidden = output.last_hidden_state
        following = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX).to(hidden.device)
        learned = following != IGNORE_INDEX
        logits = self.lm_head(hidden[learned])
        total = torch.nn.functional.cross_entropy(logits.float(), following[learned], reduction="sum")
        count = learned.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        loss = total / count.to(total.device)  # the number is of all batches that make up a step
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, images=None, image_sizes=None, **kwargs) -> Tensor:
        """Generate; returns the new tokens only, (B, new), as LLaVA does.

        Args:
            inputs: (B, S) prompts with ``IMAGE_TOKEN_INDEX``, padded on either side when ``attention_mask`` says
                where. The splice moves padding to the left.
        """
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        if input_ids is None or "inputs_embeds" in kwargs:
            raise ValueError("generate() takes token ids with <image>, and images=, not inputs_embeds")
        if kwargs.get("use_cache") is False:
            raise ValueError("generate() from spliced prompts needs its cache: leave use_cache at True")
        kwargs.pop("position_ids", None)
        spliced = self.splice_images(
            input_ids, kwargs.pop("attention_mask", None), None, images, image_sizes, padding_side="left"
        )
        return super().generate(  # type: ignore[misc] - of GenerationMixin, behind a protocol there
            inputs_embeds=spliced.inputs_embeds,
            attention_mask=spliced.attention_mask.long(),
            visual_mask=spliced.visual_mask,
            **kwargs,
        )


AutoConfig.register(LlavaConfig.model_type, LlavaConfig)
AutoModelForCausalLM.register(LlavaConfig, LlavaLlamaForCausalLM)
register_adapter(
    LlavaConfig.model_type,
    Adapter(
        decoder=lambda m: m.model,
        vision=lambda m: (m.get_vision_tower(), m.model.mm_projector),
        encoder=lambda m: "encode_images" if getattr(m.get_vision_tower(), "recordable", False) else None,
    ),
)
