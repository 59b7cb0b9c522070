"""Whole systems under test: real processes, real servers, real kills, and every kind of bad input."""
