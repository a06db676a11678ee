"""``generate`` of transformers on an attached model: where its prompt ends, and what it cannot do there.

Called by :mod:`dyvte.decoding.attach`; docs/transformers.md has the whole list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dyvte.decoding.cache.ragged import check_cache

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
