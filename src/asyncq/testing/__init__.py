"""What users need to test their own tasks: a private RabbitMQ node, and later a pytest plugin."""
