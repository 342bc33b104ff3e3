"""How a transformers model writes: many rows at once, each with draws of its own."""
