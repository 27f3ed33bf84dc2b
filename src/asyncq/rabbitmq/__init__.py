"""The RabbitMQ adapter: the only place that imports aio_pika, aiormq and pamqp."""
