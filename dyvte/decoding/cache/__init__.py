"""The KV cache in three parts.

- :mod:`buffer`: one layer's keys and values, each sample in a slice with room to grow;
- :mod:`groups`: how a buffer is read as batches, and where the next tokens go;
- :mod:`ragged`: the ``transformers`` cache made of them.
"""
