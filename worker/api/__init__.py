"""Extension points of the worker: trainers, weights, privacy filters."""
