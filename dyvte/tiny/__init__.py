"""Tiny-LLaVA: data, tower, tokenizer and base model of a very small LLaVA, made and trained on a laptop."""
