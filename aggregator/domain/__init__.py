"""Values of the aggregator by what they are: state, events, writes, effects."""
