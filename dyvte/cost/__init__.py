"""Costs of a prefill, FLOPs and KV bytes, computed from the token counts in its trace and the model's shapes."""
