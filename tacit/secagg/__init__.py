"""Secure aggregation: the server learns the sum of a cohort's vectors. State machines without I/O."""
