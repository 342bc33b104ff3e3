"""Search for the values of a training that do best."""
