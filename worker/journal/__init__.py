"""The worker's database: what it knows, what it has to send, what people approved."""
