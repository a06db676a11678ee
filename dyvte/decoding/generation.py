"""``generate`` of transformers on an attached model: where its prompt ends, and what it cannot do there.

Called by :mod:`dyvte.decoding.attach`; docs/transformers.md has the whole list.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from torch import Tensor

from dyvte.decoding.cache.ragged import check_cache

logger = logging.getLogger(__name__)

INPUTS = ("inputs", "input_ids", "inputs_embeds", "attention_mask")
WHY_NOT = {
    "prefill_chunk_size": "a policy decides on whole prompts",
    "assistant_early_exit": "the layer loop runs all layers",
}
CACHES = (None, "dynamic", "hybrid")
"""Values of ``cache_implementation`` for which ``generate`` makes a ``DynamicCache``; the last one is Gemma's."""


@dataclass
class Generation:
    """A call of ``generate`` that is under way.

    Attributes:
        prompt_columns: of the prompt, with what its cache held before; None as long as that is not known.
    """

    prompt_columns: int | None

    @classmethod
    def of(cls, model: Any, arguments: Mapping[str, Any], ids_are_columns: bool) -> Generation:
        """What is known from the arguments of ``generate``.

        Args:
            ids_are_columns: whether the decoder gets as many columns as ``generate`` gets token ids; else the prompt
                is what the decoder is called with first.

        Raises:
            ValueError: they ask for what an attached model cannot do.
        """
        config = arguments.get("generation_config") or model.generation_config

        def asked(name: str) -> Any:
            return arguments[name] if name in arguments else getattr(config, name, None)

        for name, reason in WHY_NOT.items():
            if asked(name) is not None:
                raise _not_available(name, reason)
        _check_version(model, arguments, asked, ids_are_columns)
        cache = asked("cache_implementation")
        if cache not in CACHES:
            raise _not_available(f"cache_implementation={cache!r}", "each layer keeps other tokens")
        for name in ("past_key_values", "cache"):  # the latter since transformers 5.24
            check_cache(arguments.get(name))
        given = [value for name in INPUTS if isinstance(value := arguments.get(name), Tensor)]
        known = ids_are_columns and given
        return cls(max(value.shape[1] for value in given) if known else None)

    def answers(self, seen: int, columns: int) -> int:
        """How many of the ``columns`` that follow ``seen`` others are tokens of the answer."""
        if self.prompt_columns is None:
            self.prompt_columns = seen + columns
        return min(columns, max(0, seen + columns - self.prompt_columns))


def _check_version(
    model: Any, arguments: Mapping[str, Any], asked: Callable[[str], Any], ids_are_columns: bool
) -> None:
    """Raise ValueError where the installed transformers cannot draft; say so where it would answer wrongly."""
    installed = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    drafts = asked("prompt_lookup_num_tokens") or arguments.get("assistant_model") is not None
    from_embeddings = not ids_are_columns or arguments.get("inputs_embeds") is not None
    if drafts and from_embeddings and installed < (5, 18):
        raise ValueError(
            "drafting from embeddings (LLaVA's own class) needs transformers 5.18, and "
            f"{transformers.__version__} is installed: pip install --upgrade transformers"
        )
    copies = max(asked("num_beams") or 1, asked("num_return_sequences") or 1)
    pixels, ids = arguments.get("pixel_values"), arguments.get("input_ids", arguments.get("inputs"))
    if copies == 1 or installed >= (5, 19) or pixels is None or ids is None:
        return
    image_tokens = (ids == getattr(model.config, "image_token_id", -1)).sum(1)
    several = len(pixels) != len(ids) or bool((image_tokens != image_tokens[0]).any())
    if several and "_expand_inputs_for_generation" not in vars(type(model)):
        logger.warning(
            "transformers %s gives the images of one copy to another where prompts with several images have beams or "
            "num_return_sequences, with a policy and without; 5.19 does not: pip install --upgrade transformers",
            transformers.__version__,
        )


def refuse_continuous_batching(*args: Any, **kwargs: Any) -> None:
    """Stands in for the method that all ways to continuous batching begin with (``generate_batch`` among them).

    Raises:
        ValueError: always.
    """
    raise _not_available("continuous batching (generate_batch)", "its cache has one table for all layers")


def _not_available(what: str, reason: str) -> ValueError:
    return ValueError(
        f"{what} is not available while a policy is attached, because {reason}: leave it out, or call "
        "handle.detach() first"
    )
