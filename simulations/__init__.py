"""A federation on one machine: the same apps, sites made from one data set, and a report."""
