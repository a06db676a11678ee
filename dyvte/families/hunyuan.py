"""HunYuan-VL: rotary positions on three axes (width, height, number of the image), or four with that in the text.

transformers: ``models/hunyuan_vl/modeling_hunyuan_vl.py`` (``get_rope_index``). The config's ``mrope_section`` has
the number of axes. Images are numbered through a batch, so that a prompt may get other positions beside others.
Features of line ends, begin and end of an image are image features, so they are visual tokens.

Registered in ``dyvte/families/__init__.py``; logits must equal those of transformers.
"""

from __future__ import annotations

from dyvte.families.base import family

family("hunyuan_vl", projector=None)
