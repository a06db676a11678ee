"""LLaVA's model: language model, vision tower, projector, and the loader of its checkpoints."""

from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

__all__ = ["LlavaConfig", "LlavaLlamaForCausalLM"]
