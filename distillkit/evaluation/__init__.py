"""Quality, agreement, size and speed of models."""
