"""What a run shows: the terminal, report files and model cards."""
