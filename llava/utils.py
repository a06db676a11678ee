"""Small helpers that LLaVA's tools import."""

from __future__ import annotations

import logging
import os

from llava.constants import LOGDIR


def disable_torch_init() -> None:
    """Kept for scripts that call it; changes nothing.

    It used to switch off PyTorch's weight initialisation to load faster. transformers now builds models
    without memory before it fills them, and switching initialisation off would leave new modules, such as
    gates, unset.
    """


def build_logger(logger_name: str, logger_filename: str | None = None) -> logging.Logger:
    """A logger that writes to the standard error, and to ``logger_filename`` (in ``LOGDIR``) if given."""
    logger = logging.getLogger(logger_name)
    logger.setLevel(logging.INFO)
    if logger.handlers:
        return logger
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if logger_filename:
        os.makedirs(LOGDIR, exist_ok=True)
        path = os.path.join(LOGDIR, logger_filename)
        handlers.append(logging.FileHandler(path, encoding="utf-8", delay=True))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s | %(levelname)s | %(name)s | %(message)s"))
        logger.addHandler(handler)
    return logger
