"""Held-out questions by the evaluation writers: the nine benchmarks' layouts, and one plain file of all kinds.

    DIR/vqav2 ... DIR/mm-vet       files as LLaVA's evaluation has them, one module each
    DIR/heldout/questions.jsonl    every kind equally often, with "answer" and "kind"; images in DIR/heldout/images

Benchmarks ask for different skills, from counting colors (vqav2) to reading a row of digits (textvqa), so that they
need the image up to different layers. Some ask in forms that the model was never trained on, and it answers those
badly; their modules say which.

python -m dyvte.tiny.sets --out DIR
"""

from collections.abc import Callable
from pathlib import Path

from dyvte.tiny.sets.gqa import write_gqa
from dyvte.tiny.sets.held_out import write_held_out
from dyvte.tiny.sets.mmbench import write_mmbench
from dyvte.tiny.sets.mme import write_mme
from dyvte.tiny.sets.mmvet import write_mmvet
from dyvte.tiny.sets.pope import write_pope
from dyvte.tiny.sets.scienceqa import write_sqa
from dyvte.tiny.sets.seed_bench import write_seed
from dyvte.tiny.sets.textvqa import write_textvqa
from dyvte.tiny.sets.vqav2 import write_vqav2

SETS: dict[str, tuple[str, Callable[[Path, int], None]]] = {
    "vqav2": ("vqav2", write_vqav2),
    "gqa": ("gqa", write_gqa),
    "sqa": ("scienceqa", write_sqa),
    "textvqa": ("textvqa", write_textvqa),
    "pope": ("pope", write_pope),
    "mme": ("MME", write_mme),
    "mmbench": ("mmbench", write_mmbench),
    "seed": ("seed_bench", write_seed),
    "mmvet": ("mm-vet", write_mmvet),
    "heldout": ("heldout", write_held_out),
}
"""Name of a set -> its folder, and what writes it there with so many questions."""
