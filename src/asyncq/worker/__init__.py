"""The worker: slots take deliveries, execution ends in an outcome, settlement makes it durable and acks.

broker ──▶ slot ──▶ execution ──▶ settlement ──▶ ack
slot.py   execution.py  settlement.py
runners.py runs the user's code, attempt.py is what runs
"""
