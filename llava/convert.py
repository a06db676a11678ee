"""Checkpoints of LLaVA-1.5 to the layout of transformers' ``LlavaForConditionalGeneration``, and back.

    python -m llava.convert liuhaotian/llava-v1.5-7b converted      # then: AutoModelForImageTextToText, AutoProcessor
    python -m llava.convert llava-hf/llava-1.5-7b-hf converted      # then: load_pretrained_model

The checkpoint's config says which way. Exit gates that lie in the folder go along. Logits stay the same; a token for
the image's place is added to the vocabulary where transformers needs one, and its logit is the mean of the others, so
that it is never the largest. Names of weights and fields are those of the two layouts, and must stay.

Run as ``dyvte convert``, too, and by ``scripts/tiny/next.sh``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers import LlavaConfig as HFLlavaConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from dyvte import cli
from dyvte.engine.processor_model import load_processor
from dyvte.gates.files import has_gates
from dyvte.gates.gate import ExitGates
from dyvte.gates.origin import short_name
from dyvte.provenance import checkpoint_digest
from dyvte.weights import load_pretrained
from llava.chat_model import infer_conv_mode
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation, SeparatorStyle, conv_templates
from llava.mm_utils import get_model_name_from_path, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import read_config
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

PREFIXES = {
    "model.mm_projector.0.": "model.multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "model.multi_modal_projector.linear_2.",
    "model.": "model.language_model.",
}
"""How weights' names begin in LLaVA (with an ``mlp2x_gelu`` projector) and in transformers; the first that fits."""
TOWER = "vision_tower"
"""The folder of the vision tower in LLaVA's layout."""
SELECT = {"patch": "default", "cls_patch": "full"}
"""``mm_vision_select_feature`` and ``vision_feature_select_strategy``."""


def convert(path: str, out: Path, template: str | None = None) -> str:
    """Write the checkpoint at ``path`` in the other layout; returns a sentence for the user.

    Args:
        path: folder or Hub id.
        out: a folder that does not exist yet, or is empty.
        template: name of the conversation template; by default what the checkpoint asks for.

    Raises:
        FileNotFoundError: a file of the checkpoint is missing.
        ValueError: ``out`` holds files, or the checkpoint has parts that the other layout has no place for.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} holds files already: name a new folder")
    if template is not None and template not in conv_templates:
        raise ValueError(
            f"unknown conversation template {template!r}: use one of {', '.join(conv_templates)}"
        )
    described = read_config(path)
    if described.get("model_type") == "llava" and "text_config" in described:
        _to_llava(path, out, template)
        layout, family, tower = "LLaVA's", LlavaConfig.model_type, TOWER
    else:
        _to_transformers(path, out, template or infer_conv_mode(get_model_name_from_path(path), path))
        layout, family, tower = "transformers'", HFLlavaConfig.model_type, None
    if Path(path).is_dir() and has_gates(path):
        gates = ExitGates.from_pretrained(path)
        base = {"base_model": short_name(str(out)), "base_sha256": checkpoint_digest(str(out), tower)}
        gates.origin = replace(gates.origin, model_family=family, **base)
        gates.save_pretrained(out)
    return f"{out} holds {path} in {layout} layout"


def _to_transformers(path: str, out: Path, template: str) -> None:
    described = read_config(path)
    dtype = getattr(torch, described.get("dtype") or described.get("torch_dtype") or "float16")
    loaded: Any = load_pretrained_model(path, None, get_model_name_from_path(path), device="cpu", dtype=dtype)
    tokenizer, model, image_processor, _ = loaded
    if image_processor is None or model.config.model_type != LlavaConfig.model_type:
        raise ValueError(f"{path} is not a LLaVA checkpoint on Llama: only these have a counterpart")
    config, tower = model.config, model.get_vision_tower()
    projector = getattr(config, "mm_projector_type", "linear")
    if projector != "mlp2x_gelu":
        raise ValueError(
            f"{path}: transformers' LLaVA has an mlp2x_gelu projector, this checkpoint has {projector}"
        )
    if not isinstance(tower.config, CLIPVisionConfig):
        raise ValueError(f"{path}: only checkpoints with a CLIP tower can be converted")
    aspect = getattr(config, "image_aspect_ratio", None) or "square"
    if aspect not in ("pad", "square"):
        raise ValueError(
            f"{path}: image_aspect_ratio {aspect!r} has no counterpart in transformers' LLaVA class"
        )

    tokenizer.add_tokens([DEFAULT_IMAGE_TOKEN], special_tokens=True)
    tokenizer.padding_side = "left"
    image_id = tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN)
    rows = max(len(tokenizer), config.vocab_size)
    fields = {name: getattr(config, name) for name in LlamaConfig().to_dict() if hasattr(config, name)}
    fields |= {"vocab_size": rows, "model_type": LlamaConfig.model_type, "architectures": None}
    text = LlamaConfig.from_dict(fields)
    made: Any = HFLlavaConfig  # its stub lacks fields
    converted = made(
        vision_config=tower.config,
        text_config=text,
        image_token_id=image_id,
        projector_hidden_act="gelu",
        vision_feature_layer=tower.select_layer,
        vision_feature_select_strategy=SELECT[tower.select_feature],
        image_seq_length=tower.num_patches + (tower.select_feature == "cls_patch"),
        tie_word_embeddings=config.tie_word_embeddings,
    )
    weights: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        if key.startswith("model.vision_tower.") or "visual_gates_router" in key:
            continue
        if key in ("lm_head.weight", "model.embed_tokens.weight"):
            value = torch.cat([value, value.mean(0, keepdim=True).expand(rows - len(value), -1)])
        weights[_renamed(key, PREFIXES)] = value
    weights |= {f"model.vision_tower.{key}": v for key, v in tower.vision_tower.state_dict().items()}
    hf = _filled(LlavaForConditionalGeneration, converted, weights, dtype)
    own = model.generation_config
    ends = {name: getattr(own, name) for name in ("bos_token_id", "eos_token_id")}
    hf.generation_config = GenerationConfig(**ends, pad_token_id=tokenizer.pad_token_id)
    pixels = {name: value for name, value in image_processor.to_dict().items() if not name.endswith("_type")}
    processor = LlavaProcessor(
        LlavaImageProcessorPil(**{**pixels, "do_pad": aspect == "pad"}),
        tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy=converted.vision_feature_select_strategy,
        chat_template=chat_template(conv_templates[template], _after_image(tokenizer)),
        num_additional_image_tokens=1,
    )
    hf.save_pretrained(out)
    processor.save_pretrained(out)


def _to_llava(path: str, out: Path, template: str | None) -> None:
    hf, _ = load_pretrained(LlavaForConditionalGeneration, path, dtype="auto")
    processor = load_processor(path)
    config: Any = hf.config
    strategies = {theirs: ours for ours, theirs in SELECT.items()}
    if config.vision_config.model_type != "clip_vision_model" or config.text_config.model_type != "llama":
        raise ValueError(f"{path}: LLaVA's layout takes a CLIP tower and a Llama decoder")
    if config.projector_hidden_act != "gelu" or not isinstance(config.vision_feature_layer, int):
        raise ValueError(f"{path}: LLaVA's layout takes a GELU projector over one layer of the tower")
    named = template or _template_of(processor.chat_template)
    fields = {
        k: v for k, v in config.text_config.to_dict().items() if k not in ("model_type", "architectures")
    }
    made: Any = LlavaConfig
    converted = made(
        **fields,
        mm_vision_tower=TOWER,
        mm_hidden_size=config.vision_config.hidden_size,
        mm_projector_type="mlp2x_gelu",
        mm_vision_select_layer=config.vision_feature_layer,
        mm_vision_select_feature=strategies[config.vision_feature_select_strategy],
        mm_use_im_start_end=False,
        mm_use_im_patch_token=False,
        image_aspect_ratio="pad" if getattr(processor.image_processor, "do_pad", False) else "square",
        use_mm_proj=True,
        **({"conversation_template": named} if named else {}),
    )
    prefixes = {theirs: ours for ours, theirs in PREFIXES.items()}
    weights = {
        _renamed(key, prefixes): value
        for key, value in hf.state_dict().items()
        if not key.startswith("model.vision_tower.")
    }
    model = _filled(LlavaLlamaForCausalLM, converted, weights, hf.dtype)
    model.generation_config = hf.generation_config
    model.save_pretrained(out)
    hf.model.vision_tower.save_pretrained(out / TOWER)
    pixels = processor.image_processor.to_dict()
    CLIPImageProcessorPil(
        **{name: value for name, value in pixels.items() if name != "do_pad" and not name.endswith("_type")}
    ).save_pretrained(out / TOWER)
    processor.tokenizer.padding_side = "right"
    processor.tokenizer.save_pretrained(out)


def _after_image(tokenizer: Any) -> str:
    """What to write after an image's placeholder so that the text after it is tokenized as LLaVA does: on its own.

    Raises:
        ValueError: the tokenizer joins text to the placeholder in a way of its own.
    """
    apart = tokenizer_image_token(
        "a: <image>\nb", tokenizer, tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN)
    )
    for text in ("\n", " \n"):
        if tokenizer(f"a: {DEFAULT_IMAGE_TOKEN}{text}b").input_ids == apart:
            return text
    raise ValueError("this tokenizer cannot split a prompt at images as LLaVA does")


def chat_template(conversation: Conversation, after_image: str = "\n") -> str:
    """A conversation template in Jinja, for messages whose content is text or a list of parts; images come first.

    Args:
        conversation: the template.
        after_image: stands after each image's placeholder.

    Raises:
        ValueError: the template's style cannot be written message by message.
    """
    style, (user, assistant) = conversation.sep_style, conversation.roles
    if style in (SeparatorStyle.SINGLE, SeparatorStyle.TWO):
        last = conversation.sep if style == SeparatorStyle.SINGLE else conversation.sep2
        ends, starts, opened = (conversation.sep, last), (f"{user}: ", f"{assistant}: "), f"{assistant}:"
    elif style in (SeparatorStyle.MPT, SeparatorStyle.LLAMA_3):
        ends, starts, opened = (conversation.sep,) * 2, (user, assistant), assistant
    else:
        raise ValueError(f"conversation style {style.name} has no chat template: choose another template")
    if conversation.messages:
        raise ValueError("a conversation template with example turns has no chat template: choose another")
    system, image = conversation.system + conversation.sep, DEFAULT_IMAGE_TOKEN + after_image
    parts = (*starts, *ends, system, opened, image)
    return (
        "{{{{ {4} }}}}"
        "{{% for message in messages %}}"
        "{{% set user = message['role'] == 'user' %}}"
        "{{{{ {0} if user else {1} }}}}"
        "{{% if message['content'] is string %}}{{{{ message['content'] }}}}{{% else %}}"
        "{{% for part in message['content'] if part['type'] == 'image' %}}{{{{ {6} }}}}{{% endfor %}}"
        "{{% for part in message['content'] if part['type'] == 'text' %}}{{{{ part['text'] }}}}{{% endfor %}}"
        "{{% endif %}}"
        "{{{{ {2} if user else {3} }}}}"
        "{{% endfor %}}"
        "{{% if add_generation_prompt %}}{{{{ {5} }}}}{{% endif %}}"
    ).format(*map(repr, parts))


def _template_of(written: str | None) -> str | None:
    """The name of the conversation template that :func:`chat_template` writes like this, if there is one."""
    for name, conversation in conv_templates.items():
        try:
            if written in (chat_template(conversation), chat_template(conversation, " \n")):
                return name
        except ValueError:
            continue
    return None


def _renamed(key: str, prefixes: dict[str, str]) -> str:
    """A key of the decoder or the projector in the other layout."""
    old = next((prefix for prefix in prefixes if key.startswith(prefix)), "")
    return prefixes.get(old, "") + key.removeprefix(old)


def _filled(cls: Any, config: Any, weights: dict[str, Tensor], dtype: torch.dtype) -> Any:
    """A model around these weights, which are all that it has.

    Raises:
        ValueError: weights are missing or left over.
    """
    with torch.device("meta"):
        model: nn.Module = cls(config)
    problems = model.load_state_dict(weights, strict=False, assign=True)
    absent = [key for key in problems.missing_keys if not (config.tie_word_embeddings and "lm_head" in key)]
    if absent or problems.unexpected_keys:
        raise ValueError(f"weights do not fit {cls.__name__}: {[*absent, *problems.unexpected_keys][:3]}")
    if config.tie_word_embeddings:
        model.tie_weights()  # type: ignore[operator]
    return model.to(dtype)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m llava.convert",
        description="Convert a checkpoint between LLaVA's layout and that of transformers' LLaVA class.",
    )
    parser.add_argument("model_path", help="folder or Hub id of a whole checkpoint, in either layout")
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument(
        "--conversation-template", help="name of LLaVA's template; by default the checkpoint's"
    )
    cli.run(parser, lambda a: print(convert(a.model_path, a.out, a.conversation_template)), argv)  # noqa: T201


if __name__ == "__main__":
    main()
