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
    mllama=_CROSS,
    idefics=_CROSS,
    evolla=_CROSS,
    pix2struct=_ENCODER_DECODER,
    udop="it is an encoder-decoder, whose encoder sees the image",
    pp_formulanet=_ENCODER_DECODER,
    qwen3_5=_LINEAR,
    qwen3_5_moe=_LINEAR,
    qwen4_exp=_LINEAR,
    glm5_next=_LINEAR,
    minicpm_ocr=_LINEAR,
    minicpmv4_6=_LINEAR,
    minicpmv4_7=_LINEAR,
    nemotron_h_omni="many of its layers are state-space layers (Mamba), whose states the cache does not keep",
    minimax_m3_vl=_INDEXED,
    mistral_large4=_INDEXED,
    dots3_note=_INDEXED,
    ernie4_5_vl_moe="its text and visual tokens have experts of different sizes, whose FLOPs are not counted apart",
    unlimited_ocr="its windows also hold the whole prompt, however far away it is",
    lfm3_vl=_CONVOLUTION,
    inkling2=_CONVOLUTION,
    inkling_mm_model=_CONVOLUTION,
    diffusion_gemma="it writes blocks of tokens by diffusion, not one token after another",
    git="image features stand in front of the prompt, without tokens of it",
    mistral4="it takes no images",
    pi0="it answers by actions of a robot, not by tokens",
    florence2=_ENCODER_DECODER,
    t5gemma2=_ENCODER_DECODER,
    chameleon=_VOCABULARY,
    emu3=_VOCABULARY,
    blip=_ENCODER_DECODER,
    **{"blip-2": _QFORMER, "instructblip": _QFORMER, "instructblipvideo": _QFORMER, "kosmos-2": _QFORMER},
    **{"kosmos-2.5": _QFORMER, "vision-encoder-decoder": _ENCODER_DECODER},
    gemma3n="its layers carry four parallel streams of states",
    lfm2_vl=_CONVOLUTION,
    phi4_multimodal="its decoder embeds images itself, inside the forward that a policy replaces",
)
