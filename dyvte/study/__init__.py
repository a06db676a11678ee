"""Studies of a model on benchmarks: sweeps, statistics, and the figures made from them."""
