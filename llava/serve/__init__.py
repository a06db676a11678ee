"""Talk to a model from the terminal."""
