"""Families that cannot have exits, and why: the error that :func:`dyvte.families.base.adapter_for` raises.

Registered in ``dyvte/families/__init__.py``.
"""

from __future__ import annotations

from dyvte.families.base import REFUSED

_CROSS = "images enter through cross-attention layers, so there are no visual tokens to drop"
_ENCODER_DECODER = "it is an encoder-decoder, whose decoder sees the image through cross-attention"
_VOCABULARY = "images are tokens of the vocabulary, which it also generates"
_QFORMER = "its image queries enter another way than as tokens of the prompt"
_LINEAR = (
    "most of its layers are linear attention, whose states (convolution, recurrence) the cache does not keep"
)
"""transformers: ``models/qwen3_5/modeling_qwen3_5.py`` (``Qwen3_5GatedDeltaNet``). Prompts would run by
``cu_seq_lens_q``; what is missing are these two states of each sample in the cache, also where beams, cropping and
the forked rows of labels take them, and FLOPs of such layers."""
_CONVOLUTION = "its short convolutions mix neighboring tokens of a row"
_INDEXED = (
    "its layers choose the keys that a query sees by an index of their own, which packed rows do not have"
)

REFUSED.update(
    **dict.fromkeys(("mllama", "idefics", "evolla"), _CROSS),
    **dict.fromkeys(("pix2struct", "pp_formulanet", "florence2", "t5gemma2", "blip"), _ENCODER_DECODER),
    **{"vision-encoder-decoder": _ENCODER_DECODER},
    udop="it is an encoder-decoder, whose encoder sees the image",
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe", "qwen4_exp", "glm5_next"), _LINEAR),
    **dict.fromkeys(("minicpm_ocr", "minicpmv4_6", "minicpmv4_7"), _LINEAR),
    nemotron_h_omni="many of its layers are state-space layers (Mamba), whose states the cache does not keep",
    **dict.fromkeys(("minimax_m3_vl", "mistral_large4", "dots3_note"), _INDEXED),
    **dict.fromkeys(("lfm2_vl", "lfm3_vl", "inkling2", "inkling_mm_model"), _CONVOLUTION),
    **dict.fromkeys(("chameleon", "emu3"), _VOCABULARY),
    **dict.fromkeys(("blip-2", "instructblip", "instructblipvideo", "kosmos-2", "kosmos-2.5"), _QFORMER),
    ernie4_5_vl_moe="its text and visual tokens have experts of different sizes, whose FLOPs are not counted apart",
    unlimited_ocr="its windows also hold the whole prompt, however far away it is",
    diffusion_gemma="it writes blocks of tokens by diffusion, not one token after another",
    git="image features stand in front of the prompt, without tokens of it",
    mistral4="it takes no images",
    pi0="it answers by actions of a robot, not by tokens",
    gemma3n="its layers carry four parallel streams of states",
    phi4_multimodal="its decoder embeds images itself, inside the forward that a policy replaces",
)
