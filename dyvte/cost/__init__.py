"""What a prefill costs, from its trace: FLOPs and KV bytes. Arithmetic on shapes, outside the model."""
