"""Make a model smaller or faster: steps that turn one variant into the next, in the order the config lists them."""
