"""Tasks with `run_in="process"`: a pool of processes that a worker keeps warm.

    worker (its event loop)                              a process of the pool
    pool ──▶ ChildProcess ──▶ Run, Soften, Cancel ──▶ child: reader thread ──▶ main thread: the task
                          ◀── Ended, Ask, Wrote ◀──────────────────────────────┘

Why not `anyio.to_process` or `concurrent.futures`: the first has no progress, no soft limit, no number of tasks after
which a process is replaced; the second cannot stop what runs, and breaks as a whole when one process crashes.
"""
