"""One file a task: how a row is encoded and collated, which outputs are items, which metrics count."""
