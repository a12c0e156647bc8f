"""One participant: the only place where local data and secrets are in use."""
