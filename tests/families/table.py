"""docs/families.md, written from the adapters and their test cases: ``python -m tests.families.table``."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import dyvte.families
from dyvte.bench.shapes import KINDS
from dyvte.families.base import REFUSED
from tests.families.cases import CASES

PAGE = Path(__file__).parents[2] / "docs/families.md"
CASE_OF = {"paligemma2": "paligemma"}
"""Cases that are named after another model than their type."""
ON_COMMAND_LINES = ("llava", "llava_next", "qwen2_vl")
AXES = "rotary positions on three axes (time, height, width)"
DEEPSTACK = "features added to visual tokens in early layers (deepstack)"
UNROTATED = "windows in most layers, no rotary embedding in the others"
BLOCKS = "tokens of an image see each other in both directions"
SPECIAL = {
    "aria": "mixture of experts",
    "aya_vision": UNROTATED,
    "cohere2_vision": UNROTATED,
    "cohere_compass": f"{AXES}; {DEEPSTACK}; {UNROTATED}",
    "cosmos3_omni": f"{AXES}; {DEEPSTACK}",
    "exaone4_5": UNROTATED,
    "gemma3": f"{BLOCKS}; windows, with a rotary embedding of their own, in most layers",
    "gemma4": f"{BLOCKS} in windowed layers; per-layer embeddings, shared keys and values, experts in some sizes",
    "gemma4_unified": f"{BLOCKS}; patches are embedded without a tower",
    "glm4v_moe": f"{AXES}; mixture of experts",
    "granite4_vision": f"scaled embeddings; {DEEPSTACK}",
    "granite_docling": f"scaled embeddings; {DEEPSTACK}",
    "hyperclovax_vision_v2": "scaled embeddings",
    "internvl": "decoders of several families, mixture of experts among them",
    "kimi_k25": "latent attention (MLA); mixture of experts",
    "llama4": "chunks in most layers, full attention without rotary embedding in the others; scaled queries; experts",
    "llava_next": "tiles; newline features are visual tokens",
    "llava_next_video": "tiles; newline features are visual tokens",
    "llava_onevision": "tiles; newline features are visual tokens",
    "mistral3": "queries scaled by their positions (Ministral 3)",
    "ovis2": "indicator tokens around an image are text",
    "paligemma": "a prompt sees itself in both directions; windows and soft caps (PaliGemma 2); no chat template",
    "qwen2_vl": f"{AXES}; windows in upper layers of some checkpoints",
    "qwen3_vl": f"{AXES}; {DEEPSTACK}",
    "qwen3_vl_moe": f"{AXES}; {DEEPSTACK}; mixture of experts",
    "qwen3_omni_moe_thinker": f"{AXES}; {DEEPSTACK}; mixture of experts",
    "shieldgemma2": f"{BLOCKS}; windows, with a rotary embedding of their own, in most layers",
}
"""What is special about a type, where it is more or less than what the families of its file have in common."""
NO_FAMILIES = ("base", "protocols", "refused", "rules", "stack")
HEAD = """# Model families

Every family below runs through one loop over decoder layers: exits, batches with left padding, several images, cached
generation, gates and their labels. Checkpoints of these types open on all command lines by their path or Hub name:

    MODEL=Qwen/Qwen2.5-VL-7B-Instruct METHOD=fixed EXIT_LAYER=14 scripts/v1_5/eval/gqa.sh
    python -m llava.eval.run_llava --model-path Qwen/Qwen2.5-VL-7B-Instruct --image-file a.jpg --query "What is this?"
    MODEL=Qwen/Qwen2.5-VL-7B-Instruct DATA=gates.json scripts/v1_5/finetune_visual_gate.sh

Questions have the words that LLaVA's scripts give them, in the family's own chat template. The images
stand where the question says `<image>`, else in front of it. `--conv-mode` and `--version` are for LLaVA's own
checkpoints; for these families they are an error. The checkpoint's processor prepares the images, and the answers
file names its settings. Processors that also take videos (Qwen-VL, GLM-V, InternVL, LLaVA-OneVision and others) need
torchvision. Greedy answers take the most probable token, without the penalties that some checkpoints suggest.
`trust_remote_code` is never on. Checkpoints whose processor has no chat template (PaliGemma and GOT-OCR2, as they
were released) are refused on command lines, with a sentence that says so; `dyvte.attach` takes their models. FLOPs of
towers and projectors are counted by torch's formulas while they run; those of the decoder are computed from its
matrices.

Of a Qwen-Omni checkpoint the part that sees and writes is loaded (its thinker), without those that speak.

**Videos** (extra `video`) are asked about by `--video FILE`, or by the field `video` of a question file. `--frames N`
(default 8) takes N frames at equal distances, `--frames-per-second R` takes R for each second. A processor that takes
videos gets the frames and their times as one video; for other models the frames are images, one after another. An
exit drops the tokens of all frames. `<video>` in a question's text says where the video belongs. SmolVLM, GLM-V and
Molmo 2 take no prompt with both images and videos; in a file with questions of both kinds, a batch holds one kind.

    python -m llava.eval.run_llava --model-path Qwen/Qwen2.5-VL-7B-Instruct --video a.mp4 --query "What happens?"

**A trained model to try.** `scripts/tiny/next.sh` writes Tiny-LLaVA as a LLaVA-NeXT model in seconds: the same
weights under transformers' classes, with tiles. It was not trained on tiles, but answers most questions;
`playground/tiny/README.md` has its accuracy.

**Models tested** counts kinds of tiny random models: logits without exit, with exits (against the stock model with
the image hidden above the exit), cached generation, beams, labels (against separate runs) and FLOPs (against torch's
counter), alone and in padded batches. *Commands*: also from questions to answers, calibration, stores and gate
training, with a real processor.

The towers of `fast_vlm` and `perception_lm` are in timm (`pip install timm`), which the tests do not install: their
models have a tower of transformers instead, whose features have the same shape.

"""


def sources() -> dict[str, tuple[str, str]]:
    """Model type -> (file in dyvte/families, what is special)."""
    found = {}
    for info in pkgutil.iter_modules(dyvte.families.__path__):
        if info.name in NO_FAMILIES:
            continue
        module = importlib.import_module(f"dyvte.families.{info.name}")
        text = Path(module.__file__ or "").read_text(encoding="utf-8")
        special = (module.__doc__ or "").partition("\n\n")[0].replace("\n", " ").partition(": ")[2]
        for model_type in model_types():
            if f'"{model_type}"' in text:
                found[model_type] = info.name, special.rstrip(".")
    return found


def model_types() -> list[str]:
    """Of transformers' vision-language classes that have an adapter."""
    from dyvte.families.base import _ADAPTERS

    return sorted(set(_ADAPTERS) - {"llava_llama"} - set(KINDS))


def render() -> str:
    """The page."""
    cases: dict[str, list[str]] = {}
    for name in CASES:
        model_type, _, variant = name.partition(", ")
        cases.setdefault(CASE_OF.get(model_type, model_type), []).append(variant)
    rows = ["| Model type | What is special | Models tested | Code |", "|---|---|---|---|"]
    for model_type, (file, of_file) in sorted(sources().items()):
        special = SPECIAL.get(model_type, of_file)
        variants = cases.get(model_type, [])
        tested = f"{len(variants)}" + "".join(f"; {v}" for v in variants if v) if variants else "no"
        tested += "; commands" if model_type in ON_COMMAND_LINES else ""
        rows.append(f"| `{model_type}` | {special} | {tested} | `dyvte/families/{file}.py` |")
    refused = [
        "",
        "Not available, and said so before weights are loaded:",
        "",
        "| Model type | Why |",
        "|---|---|",
    ]
    refused += [f"| `{model_type}` | {why} |" for model_type, why in sorted(REFUSED.items())]
    return (
        HEAD
        + "\n".join(rows + refused)
        + "\n\nEvery image-and-text type of transformers 5.23 is in one of the two tables.\n"
    )


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
