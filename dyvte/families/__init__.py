"""Model families: where each keeps its decoder, and which tokens are visual. One short file each.

Importing this package registers all of them. A new family is a file that calls :func:`dyvte.families.base.family`,
imports nothing of transformers' models, and has a line below.
"""

from dyvte.families import fuyu as fuyu
from dyvte.families import gemma as gemma
from dyvte.families import granite as granite
from dyvte.families import hunyuan as hunyuan
from dyvte.families import llama4 as llama4
from dyvte.families import llava as llava
from dyvte.families import molmo as molmo
from dyvte.families import muse as muse
from dyvte.families import qwen_vl as qwen_vl
from dyvte.families import refused as refused
