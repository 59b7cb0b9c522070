"""Message transports: in memory and RabbitMQ, with the outbox relay above them."""
