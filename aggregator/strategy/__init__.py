"""Extension points of the aggregator, pure: strategies, staleness, weights, buffer, stopping."""
