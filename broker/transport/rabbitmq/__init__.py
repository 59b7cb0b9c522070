"""The transport over RabbitMQ, by pika."""
