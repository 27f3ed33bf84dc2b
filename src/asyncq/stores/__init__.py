"""Where the status of tasks is kept: SQLite, PostgreSQL, Redis, or the memory of this process.

The only importer of SQLAlchemy and redis-py. `asyncq.stores.urls.store_of` chooses a store by its URL; its module, and
what that one imports, is loaded then.
"""
