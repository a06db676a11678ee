"""Tiny-LLaVA as a LLaVA-NeXT model: the same weights under another family's classes, which see an image twice, whole
and in tiles. Run by ``scripts/tiny/next.sh``, after ``llava.convert`` has brought the checkpoint into transformers'
layout.

    python -m dyvte.tiny.tiles --model FOLDER_OF_LLAVA_CONVERT --out DIR

Nothing is trained: the decoder reads the tiles' tokens as it reads those of the whole image. It was never shown the
same shape twice, so it counts worse (playground/tiny/README.md has the figures).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from dyvte.cli import run
from dyvte.engine.processor_model import load_processor
from dyvte.weights import load_pretrained

GRID = ((1, 2), (2, 1))
"""Tiles of an image, down and across, of which the processor takes what fits its shape best."""


def to_next(source: Path, out: Path) -> None:
    """Write ``out``, a checkpoint of ``LlavaNextForConditionalGeneration`` with its processor.

    Args:
        source: a checkpoint of ``LlavaForConditionalGeneration`` with a CLIP tower.

    Raises:
        OSError: a file of it is missing.
        ValueError: it is of another class.
    """
    model, _ = load_pretrained(LlavaForConditionalGeneration, str(source))
    processor: Any = load_processor(str(source))
    config: Any = model.config
    side = config.vision_config.image_size
    pinpoints = [[down * side, across * side] for down, across in GRID]
    same = ("vision_config", "text_config", "image_token_id", "projector_hidden_act", "tie_word_embeddings")
    same += ("vision_feature_layer", "vision_feature_select_strategy")
    fields: dict[str, Any] = {name: getattr(config, name) for name in same}
    tiled: Any = LlavaNextForConditionalGeneration(LlavaNextConfig(**fields, image_grid_pinpoints=pinpoints))
    weights = {**model.state_dict(), "model.image_newline": torch.zeros(config.text_config.hidden_size)}
    tiled.load_state_dict(weights)
    tiled.generation_config = model.generation_config
    tiled.to(model.dtype).save_pretrained(out)
    pixels = {
        name: v for name, v in processor.image_processor.to_dict().items() if not name.endswith("_type")
    }
    pixels |= {"size": {"shortest_edge": side}, "image_grid_pinpoints": pinpoints}
    pixels.pop("do_pad", None)
    LlavaNextProcessor(
        LlavaNextImageProcessorPil(**pixels),
        processor.tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=processor.chat_template,
        num_additional_image_tokens=processor.num_additional_image_tokens,
    ).save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder that llava.convert wrote")
    parser.add_argument("--out", type=Path, required=True)
    run(parser, lambda args: to_next(args.model, args.out))


if __name__ == "__main__":
    main()
