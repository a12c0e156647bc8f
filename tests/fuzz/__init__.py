"""Coverage-guided fuzzing: what reads bytes from outside, and what it may do with any of them."""
