"""Finds out why a participant cannot take part, and whether one could do more than it should."""
