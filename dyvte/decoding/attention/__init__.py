"""Attention within the sequences of a packed row.

- :mod:`interface`: what the model's own layers call, through transformers' attention interface;
- :mod:`plan`: which kernel runs on what, decided once per layout;
- :mod:`sdpa`, :mod:`varlen`: the plans;
- :mod:`logits`: attention weights of chosen queries, for methods and studies that look at them.
"""
