"""Families that cannot have exits, and why: the error that :func:`dyvte.families.base.adapter_for` raises.

Registered in ``dyvte/families/__init__.py``.
"""

from __future__ import annotations

from dyvte.families.base import REFUSED

_CROSS = "images enter through cross-attention layers, so there are no visual tokens to drop"
_ENCODER_DECODER = "it is an encoder-decoder, whose decoder sees the image through cross-attention"
_VOCABULARY = "images are tokens of the vocabulary, which it also generates"
_QFORMER = "its image queries enter another way than as tokens of the prompt"

REFUSED.update(
    mllama=_CROSS,
    florence2=_ENCODER_DECODER,
    t5gemma2=_ENCODER_DECODER,
    chameleon=_VOCABULARY,
    emu3=_VOCABULARY,
    blip=_ENCODER_DECODER,
    **{"blip-2": _QFORMER, "instructblip": _QFORMER, "instructblipvideo": _QFORMER, "kosmos-2": _QFORMER},
    gemma3n="its layers carry four parallel streams of states",
    lfm2_vl="its short convolutions mix neighboring tokens of a row",
    phi4_multimodal="its decoder embeds images itself, inside the forward that a policy replaces",
)
