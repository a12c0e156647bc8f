"""One experiment many times, over a grid of keys: cells in processes, a table, and a report of all of them."""
