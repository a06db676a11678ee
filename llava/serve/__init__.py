"""Talk to a model: from the terminal, and from other programs."""
