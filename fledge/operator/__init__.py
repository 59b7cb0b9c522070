"""An operator's console over the broker: its configuration, its state, its requests and answers."""
