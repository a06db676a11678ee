"""Vision towers: pixels in, one feature per patch out."""
