"""Speed and memory, measured: variants on real layer shapes, interleaved in one run. ``python -m dyvte.bench``."""
