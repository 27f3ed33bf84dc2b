"""Metrics for Prometheus: what is counted, and by what names.

registry.py    what the others share, and the text that is served
worker.py      what a worker has done and does
tally.py       plain numbers, for what happens with each message
scheduler.py   likewise
process.py     the connection, the event loop, the result store
sends.py       what was sent; for any program
counting.py    several processes as one

Everything is in `prometheus_client`'s own registry, so that what an application counts by it stands beside. The table
of names is in docs/metrics.md, and a test compares the two.

What happens with each message is counted where it happens, in plain numbers, and added to the metrics once a second and
at a scrape. What is a state (in flight, slots, connection ...) is set once a second, in the event loop.

Invariant: labels come from declarations, never from messages: a foreign message cannot make a new time series.
"""
