"""How tests of broken input run: many examples, the same in every run, and what may come of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

SECONDS = 10
"""No input may take longer."""


def many(count: int) -> pytest.MarkDecorator:
    """The test runs with so many examples, and with a hundred times as many when slow tests are asked for."""
    slow = pytest.param(100 * count, marks=[pytest.mark.slow, pytest.mark.timeout(36000)], id="slow")
    return pytest.mark.parametrize("examples", [pytest.param(count, id="some"), slow])


def examine(examples: int, strategy: SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Call ``check`` with examples."""
    settled = settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=1000 * SECONDS,
        suppress_health_check=list(HealthCheck),
    )
    settled(given(strategy)(check))()


@contextmanager
def right_or_refused(*named: str):
    """The block succeeds, or raises an error of one line that a command line shows, with one of these names in it."""
    try:
        yield
    except (ValueError, OSError) as error:
        message = str(error)
        assert type(error).__name__ not in ("UnicodeDecodeError", "JSONDecodeError"), message
        assert "\n" not in message and len(message) < 3000, message[:5000]
        assert any(name in message for name in named), message
