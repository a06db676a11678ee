"""LLaVA and its relatives: one tower, a projector, and a decoder in which nothing is special.

Places of parts and placeholders are those of transformers'
``models/<model type>``; ``python -m tests.families.table`` writes docs/families.md from this file.
Newline features of LLaVA-NeXT and OneVision are image features, so they are visual tokens; tokens such as
``[IMG_BREAK]`` or ``<row_1_col_2>`` are ordinary embeddings, so they are text.

Registered in ``dyvte/families/__init__.py``.
"""

from __future__ import annotations

from dyvte.families.base import WITH_VIDEO, family

PLAIN = (
    *("llava", "llava_next", "vipllava", "internvl", "mistral3", "aya_vision", "cohere2_vision", "got_ocr2"),
    *("pp_chart2table", "qianfan_ocr", "aria", "fast_vlm", "deepseek_ocr2"),
)
for name in PLAIN:
    family(name)
family("step3p7", tower="model.vision_model")
family("lighton_ocr", tower="model.vision_encoder", projector="model.vision_projection")
for name in ("llava_next_video", "llava_onevision"):
    family(name, ids=WITH_VIDEO)
family("perception_lm", ids=WITH_VIDEO)
family("exaone4_5", tower="model.visual", projector=None, ids=WITH_VIDEO)
family(
    "video_llava",
    tower="model.image_tower",
    projector=("model.video_tower", "model.multi_modal_projector"),
    ids=WITH_VIDEO,
)
family("kimi_k25", projector="model.mm_projector", ids=WITH_VIDEO)
family("ovis2", projector="model.visual_embeddings_table")
family("video_llama_3", tower="model.vision_model", projector="model.projector", ids=WITH_VIDEO)
for name in ("idefics2", "idefics3"):
    family(name, "model.text_model", "model.vision_model", "model.connector")
# its processor gives pixels of images and of videos the same name
family("smolvlm", "model.text_model", "model.vision_model", "model.connector", mixes_videos=False)
for name in ("janus", "deepseek_vl"):
    family(name, tower="model.vision_model", projector="model.aligner")
HIGH_RESOLUTION = ("model.high_res_vision_model", "model.high_res_vision_neck", "model.high_res_vision_proj")
family("deepseek_vl_hybrid", tower="model.vision_model", projector=(*HIGH_RESOLUTION, "model.aligner"))
