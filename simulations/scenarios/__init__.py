"""The scenarios that come with Tacit: an experiment file each, and a generator where its records are generated."""
