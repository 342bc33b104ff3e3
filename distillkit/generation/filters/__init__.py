"""Filters of generated rows: which ones become training data."""
