"""A Flower app that does nothing, so that a round of it is what Flower's nodes and its grid take."""
