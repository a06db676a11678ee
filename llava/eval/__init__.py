"""Command lines that turn questions about images into answers."""
