"""Speed and memory, measured: contenders on real layer shapes, interleaved in one run. ``python -m dyvte.bench``."""
