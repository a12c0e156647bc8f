"""Tacit: federated training in which the server learns a differentially private sum and nothing else."""

__version__ = "0.1.0"
