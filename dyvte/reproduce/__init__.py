"""The paper's tables and figures as data, and one runner for them: ``python -m dyvte.reproduce NAME``."""
