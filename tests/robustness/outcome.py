"""What broken input may end in: the right thing, or one line that a person can put something right by."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager

from hypothesis import HealthCheck, Phase, settings

FEW = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,  # run times are checked below
    phases=(Phase.explicit, Phase.generate),  # shrinking takes minutes
    suppress_health_check=list(HealthCheck),
)
MANY = settings(FEW, max_examples=10000)
"""For tests marked slow."""

SECONDS, GIGABYTES = 10, 2
LONGEST = 4000
"""Characters of a message."""


@contextmanager
def right_or_told(*names: str) -> Generator[None]:
    """The block ends, or raises ValueError or OSError with one line that holds one of ``names``; soon, and in little
    memory.
    """
    start, before = time.monotonic(), _peak()
    try:
        yield
    except (ValueError, OSError) as error:
        message = str(error)
        assert message.strip() and "\n" not in message, f"not one line: {message!r}"
        assert len(message) < LONGEST, f"{len(message)} characters: {message[:200]!r}"
        assert any(name in message for name in names), f"names none of {names}: {message!r}"
    assert time.monotonic() - start < SECONDS
    assert _peak() - before < GIGABYTES * 2**30


def _peak() -> int:
    """Most memory that this process ever held, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
