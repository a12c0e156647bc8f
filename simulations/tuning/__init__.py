"""One experiment many times, in search of good values: trials in processes, the best one, and what the search cost."""
