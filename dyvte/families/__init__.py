"""Model families: where each keeps its decoder, and which tokens are visual. One short file each."""

from dyvte.families import llava as llava  # registers itself
