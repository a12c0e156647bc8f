"""Golden vectors of the secure sum: what is given and what has to come out, for every implementation."""
