"""Server-side algorithms over Flower: the round, the secure sum as a grid, strategies."""
