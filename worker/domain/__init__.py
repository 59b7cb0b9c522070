"""Values of the worker by what they are: state, events, writes, effects."""
