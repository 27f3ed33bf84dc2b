"""The demo: real work through a real RabbitMQ, watched live and verified at the end.

Run it with `make demo`, or `python -m demo` in the folder `workers`.
"""
