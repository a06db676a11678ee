"""Small-LLaVA: LLaVA on a real language model of 135 million parameters, SmolLM2-135M-Instruct (scripts/small)."""
