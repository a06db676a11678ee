"""Work that is recorded once as CUDA graphs, and replayed.

Where the host takes longer to launch kernels than the device to run them, or waits for a gate's decision after every
layer, a recorded graph is issued at once. Its shapes, its memory and whatever the host decided are those of the
recording.

- :mod:`graphs`: :class:`Graphs`, what a user makes: what was recorded of which decoder, within a budget;
- :mod:`record`: how work is recorded;
- :mod:`compiled`: decoder layers, compiled before they are recorded;
- :mod:`rows`: the layers of a prefill, one graph for each;
- :mod:`calls`: functions of one tensor, such as a vision tower;
- :mod:`step`: a decoding step, one graph for all layers.
"""

from dyvte.decoding.graphs.graphs import Graphs, default_graphs
from dyvte.decoding.graphs.record import CudaGraphs

__all__ = ["CudaGraphs", "Graphs", "default_graphs"]
