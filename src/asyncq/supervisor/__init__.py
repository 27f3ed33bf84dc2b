"""The supervisor: starts worker processes, watches them, starts them again, stops them.

supervisor.py  the loop: signals, ends of processes, timers
restarts.py    what follows from the end of a process: pure
process.py     one worker process, started by `python -m asyncq worker`, never forked
link.py        the worker's end of what connects the two
reloading.py   changed source files, for development

It never imports the user's app: whatever that does, the supervisor goes on.
"""
