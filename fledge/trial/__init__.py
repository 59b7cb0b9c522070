"""One's own trainer in a federation on one machine: `fledge try`."""
