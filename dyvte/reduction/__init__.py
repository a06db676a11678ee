"""Other methods by which visual tokens leave, one file each: policies of the same decoding loop, with the same costs.

:mod:`dyvte.methods` finds them by name. A policy's fields with defaults are its settings on command lines; values out
of range raise ValueError.
"""

from dyvte.reduction.combine import Combine
from dyvte.reduction.fastv import FastV
from dyvte.reduction.pooling import Pooling
from dyvte.reduction.pyramiddrop import PyramidDrop
from dyvte.reduction.random_drop import RandomDrop
from dyvte.reduction.stability import StabilityExit
from dyvte.reduction.tome import ToMe
from dyvte.reduction.vtw import VTW

__all__ = ["Combine", "FastV", "Pooling", "PyramidDrop", "RandomDrop", "StabilityExit", "ToMe", "VTW"]
