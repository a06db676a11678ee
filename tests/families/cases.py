"""Tiny random models of each family: how to build one, what an image looks like in its prompt, and its pixels.

A case that has ``needs`` is of a class that older versions of transformers do not have.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import transformers as tf
from packaging.version import Version

IMAGE, VIDEO = 100, 101
REPEATS_IMAGES = Version(tf.__version__) >= Version("5.20")
"""Whether models with patches of all images in one row repeat each prompt's own for its beams."""
SIZES = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}

SAM = {
    "hidden_size": 32,
    "output_channels": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 4,
    "mlp_dim": 48,
    "window_size": 4,
    "global_attn_indexes": [1],
}


def numbers(count: int, *shape: int) -> torch.Tensor:
    """Pixels, the same at every call."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(3))


def square(side: int, **more: Any) -> Callable[[list[int]], dict[str, Any]]:
    """Pixels of square images, with further keywords for each image."""

    def pixels(images: list[int]) -> dict[str, Any]:
        count = sum(images)
        extra = {name: torch.tensor([value] * count) for name, value in more.items()}
        return {"pixel_values": numbers(count, 3, side, side), **extra}

    return pixels


def tiled(tiles: int, side: int, size: tuple[int, int]) -> Callable[[list[int]], dict[str, Any]]:
    """Pixels of images cut into tiles."""
    return lambda images: {
        "pixel_values": numbers(sum(images), tiles, 3, side, side),
        "image_sizes": torch.tensor([list(size)] * sum(images)),
    }


def patches(width: int, grid: tuple[int, int, int], **more: Any) -> Callable[[list[int]], dict[str, Any]]:
    """Flattened patches with their grids (time, height, width), as Qwen-VL has them."""
    time, height, wide = grid

    def pixels(images: list[int]) -> dict[str, Any]:
        count = sum(images)
        extra = {name: torch.tensor([value] * count) for name, value in more.items()}
        grids = torch.tensor([list(grid)] * count)
        return {
            "pixel_values": numbers(count * time * height * wide, width),
            "image_grid_thw": grids,
            **extra,
        }

    return pixels


def grouped(side: int) -> Callable[[list[int]], dict[str, Any]]:
    """Pixels (B, most images, 3, side, side), as Idefics has them."""

    def pixels(images: list[int]) -> dict[str, Any]:
        flat = numbers(sum(images), 3, side, side)
        out = torch.zeros(len(images), max(images), 3, side, side)
        for row, part in zip(out, flat.split(images), strict=True):
            row[: len(part)] = part
        return {"pixel_values": out}

    return pixels


@dataclass
class Case:
    """One tiny model.

    Attributes:
        build: makes it.
        image: token ids of one image in a prompt.
        pixels: images per sample -> keywords of the model's forward.
        types: (token ids, mask) -> keywords of the model's forward.
        visual: the ids that are visual tokens.
        most_images: of a prompt.
        attention: implementation to test with.
        positions: what ``generate`` gives, (mask) -> keywords; None where the model computes its own.
        exits: layers after which to exit.
        alone: whether the stock model is wrong in padded batches, so that each sample is compared by itself.
        needs: a class of transformers that must be there.
        beams: whether the stock model can search with beams.
    """

    build: Callable[[], Any]
    image: list[int]
    pixels: Callable[[list[int]], dict[str, Any]]
    types: Callable[[torch.Tensor], dict[str, Any]] = lambda ids: {}
    visual: tuple[int, ...] = (IMAGE,)
    most_images: int = 2
    attention: str = "sdpa"
    own_positions: bool = False
    first_position: int = 0
    exits: tuple[int, ...] = (0, 2)
    alone: bool = False
    needs: str = ""
    beams: bool = True
    extended: dict[str, int] = field(default_factory=dict)


def llama(**more):
    return tf.LlamaConfig(**SIZES, **more)


def mistral(**more):
    return tf.MistralConfig(**SIZES, **more)


def qwen2(**more):
    return tf.Qwen2Config(**SIZES, **more)


def qwen3(**more):
    return tf.Qwen3Config(**SIZES, head_dim=12, **more)


def clip():
    return tf.CLIPVisionConfig(
        **{**TOWER, "num_hidden_layers": 3}, image_size=12, patch_size=4, projection_dim=32
    )


def siglip(**more):
    return tf.SiglipVisionConfig(
        **{**TOWER, "image_size": 12, "patch_size": 4, "vision_use_head": False, **more}
    )


def pixtral():
    return tf.PixtralVisionConfig(**TOWER, image_size=16, patch_size=4)


def made(model: str, config: str, **fields: Any) -> Callable[[], Any]:
    """Builds ``transformers.model(transformers.config(**fields))``; fields that are functions are called."""

    def build():
        values = {name: value() if callable(value) else value for name, value in fields.items()}
        return getattr(tf, model)(getattr(tf, config)(**values))

    return build


def of(name: str, **fields: Any) -> Callable[[], Any]:
    """Builds ``{name}ForConditionalGeneration`` from ``{name}Config``."""
    return made(f"{name}ForConditionalGeneration", f"{name}Config", **fields)


GRID = {"image_grid_pinpoints": [[12, 24], [24, 12]]}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}
QWEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": 102,
    "vision_end_token_id": 103,
}
QWEN_TOWER = {"depth": 2, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}

QWEN2_5_TOWER = {
    **QWEN_TOWER,
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 48,
    "window_size": 16,
    "fullatt_block_indexes": [1],
}


def image_types(ids):
    return {"mm_token_type_ids": (ids == IMAGE).int()}


def qwen_vl(
    name: str,
    tower: dict[str, Any],
    text: dict[str, Any],
    ids: dict[str, int] = QWEN_IDS,
    config: str | None = None,
    **more: Any,
) -> Case:
    parts = {
        **more,
        "text_config": {**SIZES, "rope_parameters": dict(MROPE), **text},
        "vision_config": {**QWEN_TOWER, **tower},
    }
    return Case(
        made(f"{name}ForConditionalGeneration", config or f"{name}Config", **parts, **ids),
        [102] + [IMAGE] * 6 + [103],
        patches(3 * 2 * 4 * 4, (1, 4, 6)),
        types=image_types,
        own_positions=True,
        extended={"mm_token_type_ids": 0},
        needs=f"{name}ForConditionalGeneration",
    )


DEEPSTACK = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 48,
    "num_position_embeddings": 36,
    "deepstack_visual_indexes": [0, 1, 2],
}
GLM_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "image_start_token_id": 102,
    "image_end_token_id": 103,
    "video_start_token_id": 108,
    "video_end_token_id": 109,
}
GLM_TOWER = {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 48, "image_size": 16}
GLM_ROPE = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "mrope_section": [1, 1, 1],
    "partial_rotary_factor": 0.5,
}
OMNI_IDS = {**QWEN_IDS, "audio_token_id": 109}
AUDIO_TOWER = {
    "encoder_layers": 1,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "d_model": 32,
    "num_mel_bins": 8,
    "output_dim": 48,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
WINDOWED = ["sliding_attention", "full_attention"] * 2


def gemma3(window: int, attention: str, config: str = "Gemma3Config") -> Case:
    def text():
        more = {
            "head_dim": 12,
            "query_pre_attn_scalar": 12,
            "sliding_window": window,
            "layer_types": WINDOWED,
        }
        return tf.Gemma3TextConfig(**SIZES, **more)

    return Case(
        made(
            "Gemma3ForConditionalGeneration",
            config,
            text_config=text,
            vision_config=lambda: siglip(image_size=16),
            image_token_index=IMAGE,
            mm_tokens_per_image=4,
            boi_token_index=102,
            eoi_token_index=103,
        ),
        [11, 102] + [IMAGE] * 4 + [103, 11],
        square(16),
        types=lambda ids: {"token_type_ids": (ids == IMAGE).int()},
        attention=attention,
        extended={"token_type_ids": 0},
    )


def paligemma(text: Callable[[], Any], attention: str) -> Case:
    return Case(
        of(
            "PaliGemma",
            text_config=text,
            vision_config=lambda: siglip(projection_dim=48),
            image_token_index=IMAGE,
            projection_dim=48,
        ),
        [IMAGE] * 9,
        square(12),
        types=lambda ids: {"token_type_ids": torch.zeros_like(ids)},
        most_images=1,
        attention=attention,
        first_position=1,
        extended={"token_type_ids": 1},
    )


def cohere2():
    return tf.Cohere2Config(**SIZES, sliding_window=7, layer_types=WINDOWED)


def idefics(name: str) -> Case:
    def tower():
        module = getattr(tf.models, name.lower())
        configuration = getattr(module, f"configuration_{name.lower()}")
        return getattr(configuration, f"{name}VisionConfig")(**TOWER, image_size=16, patch_size=4)

    return Case(
        of(name, vision_config=tower, text_config=llama, image_token_id=IMAGE, scale_factor=2),
        [104, 105] + [IMAGE] * 4 + [104],
        grouped(16),
    )


def idefics2():
    from transformers.models.idefics2.configuration_idefics2 import (
        Idefics2PerceiverConfig,
        Idefics2VisionConfig,
    )

    perceiver = Idefics2PerceiverConfig(
        hidden_size=48,
        resampler_n_latents=4,
        resampler_depth=1,
        resampler_n_heads=4,
        resampler_head_dim=12,
        num_key_value_heads=2,
    )
    config = tf.Idefics2Config(
        vision_config=Idefics2VisionConfig(**TOWER, image_size=16, patch_size=4),
        perceiver_config=perceiver,
        text_config=mistral(sliding_window=None),
        image_token_id=IMAGE,
    )
    return tf.Idefics2ForConditionalGeneration(config)


def llama4():
    text = {
        **SIZES,
        "intermediate_size": 32,
        "intermediate_size_mlp": 64,
        "head_dim": 12,
        "num_local_experts": 4,
        "interleave_moe_layer_step": 2,
        "no_rope_layer_interval": 2,
        "attention_chunk_size": 16,
        "attn_temperature_tuning": True,
        "floor_scale": 8,
        "attn_scale": 0.5,
    }
    tower = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vision_output_dim": 32,
        "image_size": 16,
        "patch_size": 4,
        "pixel_shuffle_ratio": 0.5,
        "projector_input_dim": 32,
        "projector_output_dim": 32,
    }
    ids = {"image_token_index": IMAGE, "boi_token_index": 102, "eoi_token_index": 103}
    return tf.Llama4ForConditionalGeneration(tf.Llama4Config(text_config=text, vision_config=tower, **ids))


def janus():
    tower = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 12,
        "patch_size": 4,
        "mlp_ratio": 2.0,
        "projection_dim": 48,
        "depth": 2,
        "num_image_tokens": 9,
    }
    generator = {
        "embed_dim": 8,
        "num_embeddings": 32,
        "latent_channels": 32,
        "base_channels": 32,
        "channel_multiplier": [1, 1],
        "num_res_blocks": 1,
        "num_patches": 3,
        "projection_dim": 48,
        "num_hidden_layers": 2,
        "image_token_embed_dim": 48,
    }
    config = tf.JanusConfig(
        text_config=llama(), vision_config=tower, vq_config=generator, image_token_id=IMAGE
    )
    return tf.JanusForConditionalGeneration(config)


def molmo2():
    text = {
        **SIZES,
        "vocab_size": 120,
        "additional_vocab_size": 8,
        "head_dim": 12,
        "rope_scaling_layers": [0, 2],
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    }
    tower = {**TOWER, "num_hidden_layers": 3, "num_key_value_heads": 4, "head_dim": 8, "image_size": [16, 16]}
    adapter = {
        "vision_feature_layer": [2, 1],
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "intermediate_size": 64,
        "text_hidden_size": 48,
    }
    config = tf.Molmo2Config(
        text_config=text,
        vision_config={**tower, "patch_size": 4},
        adapter_config=adapter,
        image_patch_id=IMAGE,
        image_start_token_id=102,
        image_end_token_id=103,
        low_res_image_start_token_id=104,
        frame_start_token_id=105,
        frame_end_token_id=106,
    )
    return tf.Molmo2ForConditionalGeneration(config)


def molmo_pixels(images: list[int]) -> dict[str, Any]:
    count = sum(images)
    pooled = torch.tensor([[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])
    return {
        "pixel_values": numbers(count, 16, 48),
        "image_token_pooling": pooled.repeat(count, 1),
        "image_grids": torch.tensor([[2, 2, 0, 0]] * count),
        "image_num_crops": torch.tensor([1] * count),
    }


def gemma4_case(name: str, build: Callable[[], Any], side: int) -> Case:
    """Four tokens an image, from side x side patches with their places."""
    grid = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="xy"), -1)

    def pixels(images: list[int]) -> dict[str, Any]:
        count = sum(images)
        return {
            "pixel_values": numbers(count, side**2, 48).sigmoid(),
            "image_position_ids": grid.reshape(1, side**2, 2).repeat(count, 1, 1),
        }

    return Case(
        build,
        [102] + [IMAGE] * 4 + [103],
        pixels,
        types=image_types,
        extended={"mm_token_type_ids": 0},
        needs=f"{name}ForConditionalGeneration",
    )


def gemma4(**more):
    def build():
        text = {
            **SIZES,
            "head_dim": 12,
            "global_head_dim": 16,
            "sliding_window": 7,
            "layer_types": WINDOWED,
            "use_bidirectional_attention": "vision",
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 128,
            "num_kv_shared_layers": 0,
            "final_logit_softcapping": 5.0,
            **more,
        }
        tower = {
            **TOWER,
            "num_key_value_heads": 4,
            "head_dim": 8,
            "pooling_kernel_size": 2,
            "patch_size": 4,
            "position_embedding_size": 64,
        }
        ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "audio_token_id": 109}
        config = tf.Gemma4Config(
            text_config=text,
            vision_config=tower,
            audio_config=None,
            boi_token_id=102,
            eoi_token_id=103,
            **ids,
        )
        return tf.Gemma4ForConditionalGeneration(config)

    return gemma4_case("Gemma4", build, side=4)


def gemma4_unified() -> Case:
    """As Gemma 4, but patches are embedded by a few matrices, without a tower."""
    text = {
        **SIZES,
        "head_dim": 12,
        "global_head_dim": 16,
        "sliding_window": 7,
        "layer_types": WINDOWED,
        "use_bidirectional_attention": "vision",
        "final_logit_softcapping": 5.0,
    }
    tower = {"patch_size": 2, "pooling_kernel_size": 2, "mm_embed_dim": 32, "mm_posemb_size": 64}
    build = of(
        "Gemma4Unified",
        text_config=text,
        vision_config={**tower, "output_proj_dims": 32},
        audio_config=None,
        boi_token_id=102,
        eoi_token_id=103,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=109,
    )
    return gemma4_case("Gemma4Unified", build, side=2)


def granite_docling() -> Case:
    tower = {**TOWER, "image_size": 16, "patch_size": 4, "out_hidden_size": 48, "scale_factor": 2}
    text = {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.3,
        "logits_scaling": 2.0,
    }
    build = of(
        "GraniteDocling",
        text_config={**SIZES, **text},
        vision_config={**tower, "deepstack_visual_indexes": [0, 1]},
        image_token_id=IMAGE,
        pad_token_id=0,
    )

    def pixels(images: list[int]) -> dict[str, Any]:
        given = grouped(16)(images)["pixel_values"]
        real = torch.arange(max(images)) < torch.tensor(images)[:, None]
        return {"pixel_values": given, "pixel_attention_mask": real}

    return Case(build, [IMAGE] * 4, pixels, needs="GraniteDoclingForConditionalGeneration")


def muse(name: str, text: dict[str, Any], **more: Any) -> Case:
    text = {
        **SIZES,
        "head_dim": 12,
        "sliding_window": 7,
        "layer_types": WINDOWED,
        "layer_rope_theta": [10000.0, 0, 0, 10000.0],
        **text,
    }
    tower = {**TOWER, "patch_size": 4, "pos_emb_height": 8, "pos_emb_width": 8}
    return Case(
        of(
            name,
            text_config=text,
            vision_config=tower,
            out_hidden_size=4 * 32,
            projector_hidden_size=32,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            **more,
        ),
        [IMAGE] * 6,
        patches(3 * 2 * 4 * 4, (1, 4, 6)),
        visual=(IMAGE, VIDEO),
        needs=f"{name}ForConditionalGeneration",
    )


def granite4():
    text = {
        **SIZES,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.3,
        "logits_scaling": 2.0,
    }
    tower = {
        **TOWER,
        "model_type": "siglip_vision_model",
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "image_size": 16,
        "patch_size": 4,
        "vision_use_head": False,
    }
    former = {
        "model_type": "blip_2_qformer",
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 48,
        "encoder_hidden_size": 64,
        "cross_attention_frequency": 1,
    }
    config = tf.Granite4VisionConfig(
        text_config=text,
        vision_config=tower,
        qformer_config=former,
        image_token_index=IMAGE,
        downsample_rate="2/4",
        deepstack_layer_map=[[-1, 0], [-2, 1], [0, 2]],
        image_grid_pinpoints=[[16, 32], [32, 16]],
        use_image_newline_parameter=True,
        vision_feature_select_strategy="full",
    )
    return tf.Granite4VisionForConditionalGeneration(config)


def kimi():
    text = tf.DeepseekV3Config(
        **{**SIZES, "num_key_value_heads": 4},
        moe_intermediate_size=32,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=12,
    )
    tower = {**TOWER, "patch_size": 4, "pos_emb_height": 8, "pos_emb_width": 8}
    config = tf.Kimi_K25Config(
        text_config=text.to_dict(), vision_config=tower, projection_hidden_size=32, **QWEN_IDS
    )
    return tf.Kimi_K25ForConditionalGeneration(config)


def ministral3(**more):
    return tf.Ministral3Config(**SIZES, head_dim=12, **more)


YARN = {
    "type": "yarn",
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 8,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.5,
}


def mistral3(text: Callable[[], Any]) -> Case:
    build = of(
        "Mistral3", vision_config=pixtral, text_config=text, image_token_index=IMAGE, spatial_merge_size=2
    )
    return Case(build, [IMAGE, IMAGE, 106, IMAGE, IMAGE, 107], square(16, image_sizes=[16, 16]))


def internvl(text: Callable[[], Any]) -> Case:
    def tower():
        return tf.InternVLVisionConfig(**TOWER, image_size=[16, 16], patch_size=[4, 4])

    build = of("InternVL", vision_config=tower, text_config=text, image_token_id=IMAGE, image_seq_length=4)
    return Case(build, [102] + [IMAGE] * 4 + [103], square(16))


def deepseek_hybrid() -> Case:
    def build():
        sam = {**SAM, "output_channels": 8}
        config = tf.DeepseekVLHybridConfig(
            text_config=llama().to_dict(),
            vision_config=siglip().to_dict(),
            high_res_vision_config=tf.SamVisionConfig(**sam).to_dict(),
            image_token_id=IMAGE,
        )
        return tf.DeepseekVLHybridForConditionalGeneration(config)

    def pixels(images: list[int]) -> dict[str, Any]:
        high = torch.randn(sum(images), 3, 64, 64, generator=torch.Generator().manual_seed(4))
        return {"pixel_values": numbers(sum(images), 3, 12, 12), "high_res_pixel_values": high}

    return Case(build, [IMAGE] * 9, pixels)


def deepseek_ocr2() -> Case:
    """Its tower has 144 queries for a small image, and a separator follows them."""
    tower = {
        "sam_config": {**SAM, "downsample_channels": [16, 32]},
        "encoder_config": {**TOWER, "num_key_value_heads": 4},
    }
    text = {
        **SIZES,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "mlp_layer_types": ["dense", *["sparse"] * 3],
    }
    return Case(
        of("DeepseekOcr2", vision_config=tower, text_config=text, image_token_id=IMAGE),
        [IMAGE] * (144 + 1),
        square(64),
        needs="DeepseekOcr2ForConditionalGeneration",
    )


def step3p7() -> Case:
    text = {
        **SIZES,
        "head_dim": 12,
        "sliding_window": 7,
        "layer_types": WINDOWED,
        "num_sliding_attention_heads": 8,
        "rope_theta": [10000.0, 500.0] * 2,
        "partial_rotary_factors": [1.0, 0.5] * 2,
        "mlp_layer_types": ["dense", *["sparse"] * 3],
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "share_expert_dim": 24,
        "moe_router_scaling_factor": 2.0,
        "swiglu_limits": [0.0, 0.0, 0.5, 0.5],
        "swiglu_limits_shared": [0.0, 0.0, 0.0, 0.5],
    }
    tower = {**TOWER, "mlp_ratio": 1.5, "image_size": 32, "patch_size": 4, "max_position_embeddings": 64}
    return Case(
        of("Step3p7", vision_config=tower, text_config=text, image_token_id=IMAGE),
        [102] + [IMAGE] * 4 + [103],
        square(32),
        needs="Step3p7ForConditionalGeneration",
    )


def fast_vlm() -> Case:
    """Its own tower is timm's, which the project does not install; this one gives features of the same shape."""

    def tower():
        return tf.ResNetConfig(
            embedding_size=8,
            hidden_sizes=[16, 32],
            depths=[1, 1],
            layer_type="basic",
            hidden_size=32,
        )

    return Case(
        of("FastVlm", vision_config=tower, text_config=qwen2, image_token_index=IMAGE),
        [IMAGE] * 9,
        square(24),
        needs="FastVlmForConditionalGeneration",
    )


def perception_lm() -> Case:
    """As :func:`fast_vlm`; images come in tiles, here one each."""

    def tower():
        return tf.CLIPVisionConfig(**TOWER, image_size=24, patch_size=4, model_args={"embed_dim": 32})

    return Case(
        of(
            "PerceptionLM",
            vision_config=tower,
            text_config=llama,
            projector_pooling_ratio=2,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        ),
        [IMAGE] * 9,
        lambda images: {"pixel_values": numbers(sum(images), 1, 3, 24, 24)},
        visual=(IMAGE, VIDEO),
    )


def pixels_of(model: str, before: str) -> str:
    """What a model calls the pixels of images; ``before``: in older versions of transformers."""
    names = inspect.signature(getattr(tf, model).forward).parameters
    return "pixel_values" if "pixel_values" in names else before


def got_ocr(config: str) -> Case:
    build = made(
        "GotOcr2ForConditionalGeneration",
        config,
        text_config=lambda: qwen2().to_dict(),
        vision_config=SAM,
        image_token_index=IMAGE,
        image_seq_length=16,
    )
    return Case(build, [IMAGE] * 16, square(64), most_images=1, needs=config)


def paddle() -> Case:
    case = qwen_vl(
        "PaddleOCRVL", {**TOWER, "image_size": 16, "spatial_merge_size": 2}, {"head_dim": 12}, QWEN_IDS
    )
    case.pixels = lambda images: {
        "pixel_values": numbers(sum(images) * 24, 3, 4, 4),
        "image_grid_thw": torch.tensor([[1, 4, 6]] * sum(images)),
    }
    return case


def omni(name: str, tower: dict[str, Any], text: dict[str, Any]) -> Case:
    """Positions follow from the ids and grids, without token types."""
    case = qwen_vl(f"{name}Thinker", tower, text, OMNI_IDS, audio_config=AUDIO_TOWER)
    case.types, case.extended = lambda ids: {}, {}
    return case


def hunyuan(sections: list[int], **rope: Any) -> Case:
    """Its images have a token more in each line, and two around them."""
    text = {"head_dim": 12, "rope_parameters": {**MROPE, "mrope_section": sections, **rope}}
    case = qwen_vl(
        "HunYuanVL", {**TOWER, "max_image_size": 16}, text, {"image_token_id": IMAGE, "im_start_id": 102}
    )
    image = [102] + [IMAGE] * 10 + [103]
    return replace(case, image=image, pixels=patches(3 * 4 * 4, (1, 4, 6)), beams=REPEATS_IMAGES)


def cosmos_edge() -> Case:
    case = qwen_vl("Cosmos3Edge", {**TOWER, "num_patches": 16}, {"head_dim": 12}, QWEN_IDS)
    case.pixels = patches(3 * 4 * 4, (1, 4, 6))
    return case


def llava(text: Callable[[], Any]) -> Case:
    build = of("Llava", vision_config=clip, text_config=text, image_token_index=IMAGE, image_seq_length=9)
    return Case(build, [IMAGE] * 9, square(12))


def llava_next(text: Callable[[], Any]) -> Case:
    build = of(
        "LlavaNext", vision_config=clip, text_config=text, image_token_index=IMAGE, image_seq_length=9, **GRID
    )
    return Case(build, [IMAGE] * (9 + 3 * 6 + 3), tiled(3, 12, (12, 24)))


CASES = {
    "llava": llava(llama),
    "llava, mistral with window 12": llava(lambda: mistral(sliding_window=12)),
    "llava, pixtral tower": Case(
        of(
            "Llava",
            vision_config=pixtral,
            text_config=lambda: mistral(sliding_window=None, head_dim=12),
            image_token_index=IMAGE,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        ),
        ([IMAGE] * 4 + [106]) * 3 + [IMAGE] * 4 + [107],
        square(16, image_sizes=[16, 16]),
    ),
    "vipllava": Case(
        of(
            "VipLlava",
            vision_config=clip,
            text_config=llama,
            image_token_index=IMAGE,
            image_seq_length=9,
            vision_feature_layers=[-2, -1, 1],
        ),
        [IMAGE] * 9,
        square(12),
    ),
    "llava_next, vicuna": llava_next(llama),
    "llava_next, mistral with window 12": llava_next(lambda: mistral(sliding_window=12)),
    "llava_next_video": Case(
        of(
            "LlavaNextVideo",
            vision_config=clip,
            text_config=llama,
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            spatial_pool_stride=2,
            spatial_pool_mode="average",
            **GRID,
        ),
        [VIDEO] * 3,
        lambda images: {"pixel_values_videos": numbers(sum(images), 3, 3, 12, 12)},
        visual=(IMAGE, VIDEO),
    ),
    "llava_onevision": Case(
        of(
            "LlavaOnevision",
            vision_config=siglip,
            text_config=qwen2,
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            **GRID,
        ),
        [IMAGE] * (9 + 3 * 6 + 3),
        tiled(3, 12, (12, 24)),
        visual=(IMAGE, VIDEO),
    ),
    "internvl, qwen2": internvl(qwen2),
    "internvl, qwen3": internvl(qwen3),
    "internvl, qwen3_moe": internvl(lambda: tf.Qwen3MoeConfig(**SIZES, head_dim=12, **MOE)),
    "idefics3": idefics("Idefics3"),
    "smolvlm": idefics("SmolVLM"),
    "idefics2": Case(idefics2, [104] + [IMAGE] * 4 + [104], grouped(16)),
    "mistral3": mistral3(lambda: mistral(sliding_window=None, head_dim=12)),
    "mistral3, ministral3": mistral3(ministral3),
    "mistral3, ministral3 with query scale": mistral3(lambda: ministral3(rope_parameters=YARN)),
    "aya_vision": Case(
        of(
            "AyaVision",
            vision_config=lambda: siglip(image_size=16),
            text_config=cohere2,
            image_token_index=IMAGE,
            downsample_factor=2,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        ),
        [102] + [IMAGE] * 4 + [103],
        square(16),
    ),
    "cohere2_vision": Case(
        of(
            "Cohere2Vision",
            vision_config=lambda: siglip(image_size=16),
            text_config=cohere2,
            image_token_id=IMAGE,
            downsample_factor=2,
            alignment_intermediate_size=64,
        ),
        [102] + [IMAGE] * 4 + [103],
        square(16),
    ),
    "qwen2_vl": qwen_vl("Qwen2VL", {"embed_dim": 32, "hidden_size": 48}, {}),
    "qwen2_vl, windows in upper layers": qwen_vl(
        "Qwen2VL",
        {"embed_dim": 32, "hidden_size": 48},
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2},
    ),
    "qwen2_5_vl": qwen_vl("Qwen2_5_VL", QWEN2_5_TOWER, {}),
    "qwen3_vl": qwen_vl("Qwen3VL", DEEPSTACK, {"head_dim": 12}),
    "qwen3_vl_moe": qwen_vl("Qwen3VLMoe", DEEPSTACK, {"head_dim": 12, **MOE, "decoder_sparse_step": 1}),
    "qwen2_5_omni_thinker": omni("Qwen2_5Omni", QWEN2_5_TOWER, {}),
    "qwen3_omni_moe_thinker": omni(
        "Qwen3OmniMoe", DEEPSTACK, {"head_dim": 12, **MOE, "decoder_sparse_step": 1}
    ),
    "hunyuan_vl, three axes": hunyuan([2, 2, 2]),
    "hunyuan_vl, four axes": hunyuan([1, 2, 2, 1], rope_type="dynamic", factor=1.0, alpha=100.0),
    "glm4v": qwen_vl("Glm4v", GLM_TOWER, {"rope_parameters": GLM_ROPE}, GLM_IDS),
    "glm46v": qwen_vl("Glm46V", GLM_TOWER, {"rope_parameters": GLM_ROPE}, GLM_IDS),
    "glmga": qwen_vl("Glm46V", GLM_TOWER, {"rope_parameters": GLM_ROPE}, GLM_IDS, config="GlmgaConfig"),
    "glm_ocr": qwen_vl("GlmOcr", {**GLM_TOWER, "hidden_size": 32}, {"rope_parameters": GLM_ROPE}, GLM_IDS),
    "cosmos3_omni": qwen_vl("Cosmos3Omni", DEEPSTACK, {"head_dim": 12}),
    "glm4v_moe": qwen_vl(
        "Glm4vMoe",
        GLM_TOWER,
        {
            "head_dim": 12,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "rope_parameters": GLM_ROPE,
        },
        GLM_IDS,
    ),
    "gemma3, window 7": gemma3(7, "eager"),
    "gemma3, window smaller than an image": gemma3(3, "sdpa"),
    "shieldgemma2": gemma3(7, "eager", "ShieldGemma2Config"),
    "paligemma": paligemma(
        lambda: tf.GemmaConfig(**{**SIZES, "num_key_value_heads": 1}, head_dim=12), "sdpa"
    ),
    "paligemma2": paligemma(
        lambda: tf.Gemma2Config(
            **SIZES,
            head_dim=12,
            query_pre_attn_scalar=12,
            sliding_window=7,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=5.0,
        ),
        "eager",
    ),
    "gemma4": gemma4(),
    "gemma4, mixture of experts": gemma4(
        enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=32, attention_k_eq_v=True
    ),
    "gemma4, shared keys and values": replace(
        gemma4(
            num_hidden_layers=6,
            layer_types=[*WINDOWED, *WINDOWED[:2]],
            num_kv_shared_layers=3,
            hidden_size_per_layer_input=8,
            use_double_wide_mlp=True,
        ),
        exits=(0, 1, 2, 4),
    ),
    "gemma4_unified": gemma4_unified(),
    "gemma4, per-layer embeddings": gemma4(hidden_size_per_layer_input=8, use_bidirectional_attention=None),
    "llama4": Case(llama4, [102] + [IMAGE] * 4 + [103], square(16), alone=True),
    "ovis2": Case(
        of(
            "Ovis2",
            text_config=qwen2,
            vision_config={
                **TOWER,
                "image_size": 16,
                "patch_size": 4,
                "vocab_size": 64,
                "hidden_stride": 2,
                "num_visual_indicator_tokens": 5,
            },
            image_token_id=IMAGE,
            visual_indicator_token_ids=[110, 111, 112, 113, 114],
            vocab_size=128,
            hidden_size=48,
        ),
        [110] + [IMAGE] * 4 + [111],
        square(16),
    ),
    "janus": Case(janus, [102] + [IMAGE] * 9 + [103], square(12)),
    "deepseek_vl": Case(
        of(
            "DeepseekVL",
            text_config=lambda: llama().to_dict(),
            vision_config=lambda: siglip().to_dict(),
            image_token_id=IMAGE,
        ),
        [IMAGE] * 9,
        square(12),
    ),
    "step3p7": step3p7(),
    "deepseek_ocr2": deepseek_ocr2(),
    "deepseek_vl_hybrid": deepseek_hybrid(),
    "fast_vlm, convolutional tower of transformers": fast_vlm(),
    "perception_lm, clip tower": perception_lm(),
    "molmo2": Case(
        molmo2,
        [102] + [IMAGE, IMAGE, 107] * 2 + [103],
        molmo_pixels,
        types=image_types,
        extended={"mm_token_type_ids": 0},
        needs="Molmo2ForConditionalGeneration",
    ),
    "lighton_ocr": Case(
        of(
            "LightOnOcr", vision_config=pixtral, text_config=qwen3, image_token_id=IMAGE, spatial_merge_size=2
        ),
        [IMAGE] * 4,
        square(16, image_sizes=[16, 16]),
        needs="LightOnOcrForConditionalGeneration",
    ),
    "video_llama_3": Case(
        of(
            "VideoLlama3",
            text_config=lambda: qwen2().to_dict(),
            vision_config={**TOWER, "patch_size": 4},
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        ),
        [IMAGE] * 6,
        patches(3 * 16, (1, 4, 6), image_merge_sizes=2),
        visual=(IMAGE, VIDEO),
        needs="VideoLlama3ForConditionalGeneration",
    ),
    "kimi_k25": Case(
        kimi,
        [102] + [IMAGE] * 6 + [103],
        lambda images: {
            "pixel_values": numbers(sum(images) * 24, 3, 4, 4),
            "image_grid_thw": torch.tensor([[1, 4, 6]] * sum(images)),
        },
        visual=(IMAGE, VIDEO),
        needs="Kimi_K25ForConditionalGeneration",
    ),
    "got_ocr2": got_ocr("GotOcr2Config"),
    "pp_chart2table": got_ocr("PPChart2TableConfig"),
    "qianfan_ocr": Case(
        of(
            "QianfanOCR",
            vision_config={**TOWER, "image_size": 16, "patch_size": 4},
            text_config=lambda: qwen3().to_dict(),
            image_token_id=IMAGE,
            image_seq_length=4,
        ),
        [102] + [IMAGE] * 4 + [103],
        square(16),
        needs="QianfanOCRForConditionalGeneration",
    ),
    "exaone4_5": Case(
        of(
            "Exaone4_5_",
            vision_config={**QWEN2_5_TOWER, "num_key_value_heads": 2},
            text_config={
                **SIZES,
                "model_type": "exaone4",
                "sliding_window": 7,
                "layer_types": WINDOWED,
            },
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        ),
        [102] + [IMAGE] * 6 + [103],
        patches(3 * 2 * 4 * 4, (1, 4, 6)),
        visual=(IMAGE, VIDEO),
        needs="Exaone4_5_ForConditionalGeneration",
        beams=REPEATS_IMAGES,
    ),
    "video_llava": Case(
        of(
            "VideoLlava",
            vision_config=clip,
            text_config=llama,
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_seq_length=9,
        ),
        [IMAGE] * 9,
        lambda images: {
            pixels_of("VideoLlavaForConditionalGeneration", "pixel_values_images"): numbers(
                sum(images), 3, 12, 12
            )
        },
        visual=(IMAGE, VIDEO),
    ),
    "video_llava, video": Case(
        of(
            "VideoLlava",
            vision_config=clip,
            text_config=llama,
            image_token_index=IMAGE,
            video_token_index=VIDEO,
        ),
        [VIDEO] * 20,
        lambda images: {"pixel_values_videos": numbers(sum(images), 2, 3, 12, 12)},
        visual=(IMAGE, VIDEO),
    ),
    "paddleocr_vl": paddle(),
    "cosmos3_edge": cosmos_edge(),
    "hyperclovax_vision_v2": Case(
        of(
            "HyperCLOVAXVisionV2",
            vision_config=QWEN2_5_TOWER,
            text_config={
                **SIZES,
                "embedding_multiplier": 3.0,
                "residual_multiplier": 0.5,
                "attention_multiplier": 0.3,
                "logits_scaling": 0.5,
            },
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        ),
        [102] + [IMAGE] * 6 + [103],
        patches(3 * 2 * 4 * 4, (1, 4, 6)),
        visual=(IMAGE, VIDEO),
        needs="HyperCLOVAXVisionV2ForConditionalGeneration",
    ),
    "aria": Case(
        of(
            "Aria",
            text_config=lambda: tf.AriaTextConfig(
                **{**SIZES, "intermediate_size": 32}, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1
            ),
            vision_config={"model_type": "idefics3_vision", **TOWER, "image_size": 16, "patch_size": 4},
            projector_patch_to_query_dict={16: 4},
            image_token_index=IMAGE,
        ),
        [IMAGE] * 4,
        square(16),
    ),
    "fuyu": Case(
        made(
            "FuyuForCausalLM",
            "FuyuConfig",
            text_config={
                **{name: SIZES[name] for name in SIZES if name != "num_key_value_heads"},
                "model_type": "persimmon",
            },
            hidden_size=48,  # of the projection, before transformers 5.23
            image_token_id=IMAGE,
            patch_size=4,
        ),
        [IMAGE, IMAGE, 106, IMAGE, IMAGE, 106],
        lambda images: {pixels_of("FuyuForCausalLM", "image_patches"): numbers(sum(images) * 4, 48)},
        beams=False,  # it does not repeat images for them
    ),
    "granite_docling": granite_docling(),
    "muse_glimmer": muse("MuseGlimmer", {}),
    "muse_spark": muse(
        "MuseSpark",
        {
            "moe_hidden_size": 32,
            "moe_intermediate_size": 24,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "mlp_layer_types": ["dense", *["sparse"] * 3],
        },
        audio_config={
            "patch_sizes": [2, 2],
            "hidden_sizes": [8, 8],
            "depths": [1, 1],
            "num_hidden_layers": 2,
            "out_hidden_size": 48,
        },
        audio_token_id=109,
    ),
    "cohere_compass": qwen_vl(
        "CohereCompass",
        DEEPSTACK,
        {
            "sliding_window": 7,
            "layer_types": WINDOWED,
            "logit_scale": 0.5,
            "rope_parameters": {"sliding_attention": dict(MROPE), "full_attention": None},
        },
    ),
    "granite4_vision": Case(
        granite4, [IMAGE] * 14, tiled(3, 16, (16, 32)), needs="Granite4VisionForConditionalGeneration"
    ),
}
