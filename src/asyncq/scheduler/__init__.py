"""The scheduler: any number of processes that may run it, one that sends what is due."""
