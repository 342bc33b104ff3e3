"""Loss terms, the objective that combines them, and the chunked pass over the vocabulary."""
