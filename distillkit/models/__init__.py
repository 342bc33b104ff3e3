"""Teachers, students and tokenizers."""
