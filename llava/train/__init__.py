"""Training of LLaVA (projector, full, LoRA) and of the visual-token exit gates."""
