"""A federation of processes on one machine, to look at."""
