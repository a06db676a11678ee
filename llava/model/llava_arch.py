"""How images enter the prompt: encode, splice, and say where they went.

``splice`` replaces each image sentinel by that image's features and returns a boolean *visual mask* beside the
embeddings. Everything later (exits, reduction, cost) reads that mask; nothing guesses positions or counts.

Shapes: B rows, S prompt length before the splice, L after it, N features of one image, D hidden size.

Called by :mod:`llava.model.language_model.llava_llama`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from dyvte.gates.supervision import Embedded
from dyvte.weights import load_tensors
from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_PATCH_TOKEN,
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
)
from llava.mm_utils import get_anyres_image_grid_shape, most_tiles
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_projector.builder import build_vision_projector


class Spliced(Embedded):
    """A padded batch after the images entered it; embeddings are zero, and labels ``IGNORE_INDEX``, at padding."""

    @property
    def positions(self) -> Tensor:
        """(B, L) long, 0, 1, ... over the real tokens of a row, 0 at padding."""
        return (self.attention_mask.cumsum(1) - 1) * self.attention_mask


def splice(
    input_ids: Tensor,
    features: list[Tensor],
    embed: nn.Embedding,
    *,
    attention_mask: Tensor | None = None,
    labels: Tensor | None = None,
    max_length: int | None = None,
    padding_side: str = "right",
) -> Spliced:
    """Replace the image sentinels of a batch by image features.

    Args:
        input_ids: (B, S) long, with ``IMAGE_TOKEN_INDEX`` where an image belongs.
        features: one (N, D) tensor per sentinel, in order over the batch. As in LLaVA, a row without a sentinel
            may have a dummy entry; that is assumed when ``len(features)`` counts one for each such row.
        embed: the language model's token embedding.
        attention_mask: (B, S), nonzero on real tokens; all tokens by default.
        labels: (B, S) long; all ``IGNORE_INDEX`` by default.
        max_length: rows are cut to this length after the splice.
        padding_side: "left" or "right".

    Raises:
        ValueError: when sentinels and features do not match in number, or a row holds no token.
    """
    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side must be 'left' or 'right', got {padding_side!r}")
    keep = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    rows = [ids[mask] for ids, mask in zip(input_ids, keep, strict=True)]
    labels = torch.full_like(input_ids, IGNORE_INDEX) if labels is None else labels
    row_labels = [row[mask] for row, mask in zip(labels, keep, strict=True)]

    sentinels = [int((ids == IMAGE_TOKEN_INDEX).sum()) for ids in rows]
    with_dummies = sum(max(count, 1) for count in sentinels)
    if len(features) not in (sum(sentinels), with_dummies):
        raise ValueError(
            f"the prompts hold {sum(sentinels)} <image> tokens, but {len(features)} images were given; "
            "give one image for each <image>, in order"
        )
    skip_dummy = len(features) == with_dummies

    pieces, next_feature = [], 0
    for ids, row_label, count in zip(rows, row_labels, sentinels, strict=True):
        if len(ids) == 0:
            raise ValueError("a row of the batch holds no token: every prompt needs at least one")
        taken = features[next_feature : next_feature + count]
        next_feature += max(count, 1) if skip_dummy else count
        pieces.append(_splice_row(ids, row_label, taken, embed, max_length))
    return _pad(pieces, padding_side)


def _splice_row(
    ids: Tensor, labels: Tensor, features: list[Tensor], embed: nn.Embedding, max_length: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """One row without padding -> (embeddings (L, D), labels (L,), visual mask (L,))."""
    is_image = ids == IMAGE_TOKEN_INDEX
    sizes = [len(feature) for feature in features]
    repeats = torch.ones_like(ids).masked_scatter(is_image, ids.new_tensor(sizes))
    length = len(ids) - len(sizes) + sum(sizes)
    source = torch.arange(len(ids), device=ids.device).repeat_interleave(repeats, output_size=length)
    source = source[:max_length]
    embeds, visual = embed(ids.masked_fill(is_image, 0))[source], is_image[source]
    if features:
        embeds = embeds.masked_scatter(visual[:, None], torch.cat(features).to(embeds))
    return embeds, labels.masked_fill(is_image, IGNORE_INDEX)[source], visual


def _pad(rows: list[tuple[Tensor, Tensor, Tensor]], padding_side: str) -> Spliced:
    """Rows of different length -> one padded batch."""
    embeds, labels, visual = (list(parts) for parts in zip(*rows, strict=True))
    pad = partial(pad_sequence, batch_first=True, padding_side=padding_side)
    return Spliced(
        inputs_embeds=pad(embeds),
        attention_mask=pad([torch.ones_like(row) for row in visual]),
        labels=pad(labels, padding_value=IGNORE_INDEX),
        visual_mask=pad(visual),
    )


def unpad_image(tensor: Tensor, original_size: tuple[int, int]) -> Tensor:
    """Cut away the symmetric padding of a feature map (C, H, W) made from an image of ``(width, height)``."""
    width, height = original_size
    rows, columns = tensor.shape[1:]
    if width / height > columns / rows:
        border = (rows - int(height * (columns / width))) // 2
        return tensor[:, border : rows - border]
    border = (columns - int(width * (rows / height))) // 2
    return tensor[:, :, border : columns - border]


def _at_most(grid: Tensor, side: int, tiles: int | None) -> Tensor:
    """A feature map (D, H, W), made smaller where it has over 1.1^2 times the features of so many tiles of side^2 (as
    in LLaVA-NeXT's ``anyres_max_N``); None for no limit.
    """
    times = 0.0 if tiles is None else math.sqrt(grid.shape[1] * grid.shape[2] / (tiles * side**2))
    if times <= 1.1:
        return grid
    smaller = (int(grid.shape[1] // times), int(grid.shape[2] // times))
    return nn.functional.interpolate(grid[None], smaller, mode="bilinear")[0]


class LlavaMetaModel:
    """Adds a vision tower and a projector to a language model's inner module."""

    config: Any  # of the language model, like all that is only declared here
    dtype: torch.dtype

    def __init__(self, config):
        super().__init__(config)  # type: ignore[call-arg] - the language model's own
        if getattr(config, "mm_vision_tower", None) is not None:
            self.vision_tower = build_vision_tower(config, delay_load=True)
            self.mm_projector = build_vision_projector(config)
            if "unpad" in getattr(config, "mm_patch_merge_type", ""):
                self.image_newline = nn.Parameter(torch.empty(config.hidden_size, dtype=self.dtype))

    def get_vision_tower(self):
        """The vision tower, or None."""
        tower = getattr(self, "vision_tower", None)
        return tower[0] if isinstance(tower, list) else tower

    def initialize_vision_modules(self, model_args, fsdp=None) -> None:
        """Build tower and projector for training, from LLaVA's ``ModelArguments``.

        A projector that exists is kept; ``pretrain_mm_mlp_adapter`` names a file of projector weights to start
        from. ``fsdp`` (a nonempty list) keeps the tower out of the module tree, as LLaVA does.
        """
        config = self.config
        config.mm_vision_tower = model_args.vision_tower
        tower = self.get_vision_tower()
        if tower is None:
            tower = build_vision_tower(model_args)
            self.vision_tower = [tower] if fsdp else tower
        elif not tower.is_loaded:
            tower.load_model()
        config.use_mm_proj = True
        config.mm_projector_type = getattr(model_args, "mm_projector_type", "linear")
        config.mm_hidden_size = tower.hidden_size
        config.mm_vision_select_layer = model_args.mm_vision_select_layer
        config.mm_vision_select_feature = model_args.mm_vision_select_feature
        config.mm_patch_merge_type = model_args.mm_patch_merge_type

        if getattr(self, "mm_projector", None) is None:
            self.mm_projector = build_vision_projector(config)
            if "unpad" in config.mm_patch_merge_type:
                scale = config.hidden_size**-0.5
                self.image_newline = nn.Parameter(torch.randn(config.hidden_size, dtype=self.dtype) * scale)
        self.mm_projector.requires_grad_(True)

        if adapter := model_args.pretrain_mm_mlp_adapter:
            marker = "mm_projector."
            weights = load_tensors(adapter)
            own = {key.split(marker, 1)[1]: value for key, value in weights.items() if marker in key}
            self.mm_projector.load_state_dict(own)


class LlavaMetaForCausalLM:
    """What a causal language model needs to take images: encode, splice, and the extra vocabulary."""

    config: Any  # of the language model, like all that is only declared here
    resize_token_embeddings: Callable[..., Any]
    get_input_embeddings: Callable[[], Any]
    get_output_embeddings: Callable[[], Any]
    get_model: Callable[[], Any]  # the inner module that holds tower, projector and decoder

    def get_vision_tower(self):
        return self.get_model().get_vision_tower()

    def encode_images(self, images: Tensor) -> Tensor:
        """Pixels (I, 3, H, W) -> projected features (I, N, D)."""
        return self.get_model().mm_projector(self.get_vision_tower()(images))

    def image_features(self, images, image_sizes=None) -> list[Tensor]:
        """Features of each image, one (N, D) tensor per ``<image>``.

        Args:
            images: (I, 3, H, W); or (I, K, 3, H, W) / a list of (3, H, W) or (K, 3, H, W) when images are cut
                into K tiles (anyres: the whole image first, then its tiles).
            image_sizes: original (width, height) of each image; needed to merge tiles spatially.
        """
        if torch.is_tensor(images) and images.ndim == 4:
            return list(self.encode_images(images))
        tiles = [image[None] if image.ndim == 3 else image for image in images]
        if not tiles:
            return []
        encoded = self.encode_images(torch.cat(tiles)).split([len(tile) for tile in tiles])
        merge_type = getattr(self.config, "mm_patch_merge_type", "flat")
        if merge_type == "flat":
            return [feature.flatten(0, 1) for feature in encoded]
        if not merge_type.startswith("spatial"):
            raise ValueError(f"unknown mm_patch_merge_type {merge_type!r}: use flat, spatial, spatial_unpad")
        if image_sizes is None:
            raise ValueError("image_sizes is needed to merge image tiles: pass each image's (width, height)")
        return [
            self._merge_tiles(feature, tuple(size), "unpad" in merge_type)
            for feature, size in zip(encoded, image_sizes, strict=True)
        ]

    def _merge_tiles(self, feature: Tensor, size: tuple[int, int], unpad: bool) -> Tensor:
        """(1 + tiles, N, D) -> (N + merged, D): the whole image, then its tiles as one map, row by row."""
        tower = self.get_vision_tower()
        newline = self.get_model().image_newline[:, None, None].to(feature) if unpad else None
        base = feature[0]
        if len(feature) == 1:
            return base if newline is None else torch.cat([base, newline.flatten()[None]])
        side = tower.num_patches_per_side
        if side * side != base.shape[0]:
            raise ValueError(f"tiles must give {side}x{side} features to be merged, got {base.shape[0]}")
        columns, rows = get_anyres_image_grid_shape(
            size, self.config.image_grid_pinpoints, tower.config.image_size
        )
        grid = feature[1:].reshape(rows, columns, side, side, -1)
        if newline is None:
            return torch.cat([base, grid.permute(0, 2, 1, 3, 4).flatten(0, 3)])
        grid = grid.permute(4, 0, 2, 1, 3).flatten(1, 2).flatten(2, 3)  # (D, rows * side, columns * side)
        grid = _at_most(
            unpad_image(grid, size), side, most_tiles(getattr(self.config, "image_aspect_ratio", None))
        )
        grid = torch.cat([grid, newline.expand(-1, grid.shape[1], 1)], dim=-1)
        return torch.cat([base, grid.flatten(1).T])

    def splice_images(
        self, input_ids, attention_mask=None, labels=None, images=None, image_sizes=None, padding_side=None
    ) -> Spliced:
        """Encode ``images`` and splice them into the prompts; see :func:`splice` and :meth:`image_features`.

        Samples with labels are cut to ``tokenizer_model_max_length``, as in LLaVA's training. A prompt without them
        would lose its question so.

        Raises:
            ValueError: a prompt without labels is longer than that, or images and sentinels differ in number.
        """
        config = self.config
        longest = getattr(config, "tokenizer_model_max_length", None)
        has_tower = self.get_vision_tower() is not None
        features = self.image_features(images, image_sizes) if images is not None and has_tower else []
        spliced = splice(
            input_ids,
            features,
            self.get_model().embed_tokens,
            attention_mask=attention_mask,
            labels=labels,
            max_length=longest if labels is not None else None,
            padding_side=padding_side or getattr(config, "tokenizer_padding_side", "right"),
        )
        if labels is None and longest is not None and spliced.inputs_embeds.shape[1] > longest:
            raise ValueError(
                f"a prompt of {spliced.inputs_embeds.shape[1]} tokens, of which "
                f"{int(spliced.visual_mask.sum(1).max())} are of images, is longer than {longest}, the model's "
                "tokenizer_model_max_length: ask about fewer images, or with less text"
            )
        return spliced

    def prepare_inputs_labels_for_multimodal(
        self, input_ids, position_ids, attention_mask, past_key_values, labels, images, image_sizes=None
    ):
        """LLaVA's six-tuple: (input_ids, position_ids, attention_mask, past_key_values, inputs_embeds, labels).

        Kept for tools that wrap it; the project itself calls :meth:`splice_images`, which also says where the
        images went. What the caller passed as None comes back as None.
        """
        if self.get_vision_tower() is None or images is None or input_ids.shape[1] == 1:
            return input_ids, position_ids, attention_mask, past_key_values, None, labels
        out = self.splice_images(input_ids, attention_mask, labels, images, image_sizes)
        return (
            None,
            None if position_ids is None else out.positions,
            None if attention_mask is None else out.attention_mask.to(attention_mask.dtype),
            past_key_values,
            out.inputs_embeds,
            None if labels is None else out.labels,
        )

    def initialize_vision_tokenizer(self, model_args, tokenizer) -> None:
        """Add LLaVA's image tokens to tokenizer and embeddings, as ``mm_use_im_*`` ask.

        New rows of the embeddings start as the mean of the old ones.
        """
        if model_args.mm_use_im_patch_token:
            tokenizer.add_tokens([DEFAULT_IMAGE_PATCH_TOKEN], special_tokens=True)
            self.resize_token_embeddings(len(tokenizer))
        if not model_args.mm_use_im_start_end:
            return
        added = tokenizer.add_tokens([DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN], special_tokens=True)
        self.resize_token_embeddings(len(tokenizer))
        embeddings = [self.get_input_embeddings().weight.data, self.get_output_embeddings().weight.data]
        if added:
            for weight in embeddings:
                weight[-added:] = weight[:-added].mean(dim=0, keepdim=True)
        if model_args.tune_mm_mlp_adapter:
            self.get_input_embeddings().weight.requires_grad = True
            self.get_output_embeddings().weight.requires_grad = False
        if adapter := model_args.pretrain_mm_mlp_adapter:
            rows = load_tensors(adapter)["model.embed_tokens.weight"]
            embeddings[0][-added:] = rows[-added:].to(embeddings[0])
