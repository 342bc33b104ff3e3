"""Pseudo data from a teacher: soft labels and text."""
